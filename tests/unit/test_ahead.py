"""Shards fetched before the batches that ask for them, and what a config may say of the cache."""

import time

import numpy as np
import pytest
from accelerate import skip_first_batches
from datasets import Dataset
from support import synthetic
from torch.utils.data import DataLoader

from axolotl_distill.config.cache import byte_count
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.ahead import Ahead, _flat, look_ahead
from axolotl_distill.store import CachePlace, open_store, pointer_tag, remote


@pytest.fixture
def far(tmp_path):
    near = synthetic.write_store(tmp_path / "store", rows=60, every=40)
    store = open_store(f"file://{near}", cache=CachePlace(tmp_path / "cache", 10**6))
    assert len(store.manifest.shards) > 10
    return store


@pytest.fixture
def rows(far):
    """A row a shard, out of order, and one without a record."""
    order = np.random.default_rng(0).permutation(len(far.manifest.shards))
    base = far.manifest.pointer_base
    firsts = [base + far.manifest.shards[number].first_record for number in order]
    made = [{"teacher_pos": [-1, first, first + 1]} for first in firsts]
    made.insert(3, {"teacher_pos": [-1, -1]})
    return Dataset.from_list(made), [int(number) for number in order]


def shards(far):
    return far.manifest.shards


def stores(far):
    return {int(pointer_tag(np.int64(far.manifest.pointer_base))): far}


def test_the_batches_are_the_same_and_their_shards_expected(far, rows, monkeypatch):
    dataset, order = rows
    expected = []
    monkeypatch.setattr(far, "expect", expected.append)
    batches = [[0], [[1, 2], [3]], [4, 5], *([at] for at in range(6, len(dataset)))]
    sizes = [shard.files[shard.records_file]["bytes"] for shard in far.manifest.shards]
    # Half of it, for each of two processes: some three shards.
    far.cache.size = 3 * 4 * max(sizes)
    ahead = Ahead(batches, dataset, stores(far), processes=2)
    given = []
    for batch in ahead:
        given.append(batch)
        used = 1 + max(_flat(batch))
        assert len(expected) >= min(used - 1, len(order)), "it is told of before it is used"
        # A batch has up to two shards, and one more may be taken in than there is room for.
        assert sum(sizes[number] for number in expected[used:]) < 5 * max(sizes)
    assert given == batches and expected == order and len(ahead) == len(batches)


def test_shards_are_there_when_they_are_asked_for(far, rows):
    dataset, order = rows
    loader = DataLoader(dataset, batch_size=2, collate_fn=list)
    look_ahead(loader, dataset, stores(far), processes=1)
    assert isinstance(loader.batch_sampler, Ahead)
    batches = iter(loader)
    first = next(batches)
    limit = time.monotonic() + 20
    while len(list((far.cache.folder / "objects").glob("*[!t]"))) < len(order):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert far.cache.stalls.count == 0
    far.read(np.arange(far.num_records))
    assert far.cache.stalls.count == 0
    assert len([first, *batches]) == len(loader) == (len(dataset) + 1) // 2


def test_what_a_resumed_run_passes_by_is_not_fetched(far, rows, monkeypatch):
    dataset, order = rows
    monkeypatch.setattr(remote, "AHEAD_THREADS", 0)
    far.cache.size = 10 * max(about.files[about.records_file]["bytes"] for about in shards(far))
    loader = DataLoader(dataset, batch_size=1, collate_fn=list)
    look_ahead(loader, dataset, stores(far), processes=1)
    # The fourth row has no record.
    rest = iter(skip_first_batches(loader, 7))
    next(rest)
    assert next(iter(far._ahead._todo)) == order[6]
    list(rest)
    assert not far._ahead._todo


def test_a_loader_of_local_stores_is_left_alone(tmp_path, rows):
    dataset, _ = rows
    near = open_store(synthetic.write_store(tmp_path / "near"))
    loader = DataLoader(dataset, batch_size=2)
    before = loader.batch_sampler
    look_ahead(loader, dataset, stores(near), processes=1)
    assert loader.batch_sampler is before


@pytest.mark.parametrize(
    "written, size",
    [("200GB", 200 * 10**9), ("1.5 TiB", 3 * 2**39), ("7", 7), (9, 9), ("10g", 10**10)],
)
def test_sizes(written, size):
    assert byte_count(written) == size
    assert parse_distill({"cache": {"size": written}}).cache.size == size


@pytest.mark.parametrize(
    "block, said",
    [
        ({"cache": {"size": "much"}}, r"`distill.cache.size`: must be a size, as in 200GB"),
        ({"cache": {"size": 0}}, r"greater than or equal to 1"),
        ({"cache": {"path": "x"}}, r"unknown key `path`"),
    ],
)
def test_what_is_refused(block, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill(block)


@pytest.mark.axolotl
def test_a_cache_that_nothing_reads_is_refused(tmp_path):
    from axolotl_distill.host.checks import config_findings

    cfg = {"datasets": [{"path": "./store", "type": "axolotl_distill.store"}]}
    args = parse_distill({"cache": {"size": "1GB"}}, cfg["datasets"])
    assert "no entry of `datasets`" in str(next(iter(config_findings(cfg, args))))
    cfg["datasets"][0]["path"] = "s3://bucket/store"
    assert list(config_findings(cfg, args)) == []
