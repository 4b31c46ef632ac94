"""Full disks, folders that take nothing, workers and long runs: of what moves stores, and of stores
at an address, on an S3 server on this machine."""

import gc
import json
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from crash.test_faults import contents, disk, remount, without_root
from support.captures import MadeUp, MadeUpAway, digest, rows_of
from support.loading import Records
from support.s3_server import s3_server
from support.synthetic import write_store
from torch.utils.data import DataLoader

from axolotl_distill.errors import DistillError
from axolotl_distill.store import CachePlace, open_store, verify_store
from axolotl_distill.store.rearrange import merge, reshard, split
from axolotl_distill.store.transfer import pull, push

__all__ = ["disk"]
ACTS = ["merge", "split", "reshard", "pull", "capture"]


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as server:
        yield server.make_bucket("faults")


@pytest.fixture(scope="module")
def acts(bucket):
    """By name: what writes a store below a folder. What they read is where others may look."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    source = open_store(write_store(place / "source", "topk", rows=300, every=300))
    split(source, place / "parts", 3)
    parts = [open_store(part) for part in sorted((place / "parts").iterdir())]
    push(source, f"{bucket}/source")
    yield {
        "merge": lambda folder: merge(parts, folder / "store"),
        "split": lambda folder: split(source, folder / "store", 3),
        "reshard": lambda folder: reshard(source, folder / "store", 700),
        "pull": lambda folder: pull(f"{bucket}/source", folder / "store"),
        "capture": lambda folder: MadeUpAway(bucket).captured(folder),
    }
    shutil.rmtree(place)


def result(act, folder, bucket):
    """Rows, and the bytes of records."""
    if act == "capture":
        return MadeUpAway(bucket).result(folder)
    found = sorted(folder.glob("store/**/manifest.json"))
    stores = [verify_store(path.parent) for path in found]
    records = [
        digest(store.path / shard.records_file)
        for store in stores
        for shard in store.manifest.shards
    ]
    return [rows_of(store) for store in stores], records


@pytest.mark.parametrize("act", ACTS)
def test_a_full_disk(act, acts, bucket, tmp_path, disk):
    """Ends with our error, again and again, and with room the same command ends it."""
    acts[act](tmp_path)
    whole = result(act, tmp_path, bucket)
    full = disk(28 if act == "capture" else 100)
    for _ in range(2):
        with pytest.raises(DistillError, match="Make room"):
            acts[act](full)
    remount(full, "size=8m")
    acts[act](full)
    assert result(act, full, bucket) == whole


@pytest.mark.parametrize("act", ACTS)
def test_a_disk_that_may_only_be_read(act, acts, disk):
    folder = disk(4096)
    (folder / "note").write_text("stays")
    before = contents(folder)
    folder.chmod(0o755)
    with without_root(), pytest.raises(DistillError, match=r"cannot be written.*Permission"):
        acts[act](folder)
    remount(folder, "ro")
    with pytest.raises(DistillError, match=r"cannot be written.*Read-only"):
        acts[act](folder)
    assert contents(folder) == before


@pytest.fixture
def far(bucket, tmp_path):
    """Many shards, and a cache of three."""
    near = write_store(tmp_path / "near", "topk", rows=120, every=150)
    url = f"{bucket}/{tmp_path.name}"
    push(open_store(near), url)
    sizes = [shard.files[shard.records_file]["bytes"] for shard in open_store(near).manifest.shards]
    assert len(sizes) > 9
    return open_store(near), open_store(url, cache=CachePlace(tmp_path / "c", 3 * max(sizes)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_through_the_cache(far, method):
    near, away = far
    here = [Records(near)[number] for number in range(len(Records(near)))]
    Records(away)[0]
    loader = DataLoader(
        Records(away), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    assert all(torch.equal(a, b) for a, b in zip(here, loader, strict=True))
    assert 0 < away.cache.used() <= away.cache.size


@pytest.mark.slow
def test_a_hundred_epochs_through_the_cache(far):
    """Every shard is fetched anew in every epoch."""
    _, away = far
    me, seen = psutil.Process(), []
    for epoch in range(100):
        for number in range(len(Records(away))):
            Records(away)[number]
        if epoch % 10 == 9:
            gc.collect()
            seen.append((me.num_fds(), me.memory_info().rss))
    print("descriptors and bytes at every tenth epoch:", json.dumps(seen), away.cache.stalls)
    assert away.cache.stalls.count >= 100 * len(away.manifest.shards)
    assert seen[-1][0] <= seen[1][0]
    assert seen[-1][1] <= seen[1][1] + (8 << 20)


def test_made_up_captures_are_what_a_folder_gets(tmp_path, bucket):
    """So that the comparisons above compare something."""
    MadeUp().captured(tmp_path)
    (tmp_path / "away").mkdir()
    MadeUpAway(bucket).captured(tmp_path / "away")
    assert MadeUp().result(tmp_path) == MadeUpAway(bucket).result(tmp_path / "away")
