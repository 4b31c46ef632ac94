"""Writing, reading, killing and damaging real stores."""

import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import synthetic

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store import (
    StoreWriter,
    open_store,
    pointer_record,
    pointer_tag,
    verify_store,
)
from axolotl_distill.store.encoding import PAD

KINDS = ["topk", "nucleus", "sampled"]
BESIDE = {"topk": "tail", "nucleus": "tail", "sampled": "entropy"}
ROOT = Path(__file__).resolve().parents[2]


def expected_records(kind, rows):
    """(entries of every record, the other column of all), straight from what was appended."""
    entries, others = [], []
    for index in range(rows):
        made = synthetic.row(index, kind)
        if made is None:
            continue
        records = made["records"]
        entries += np.split(records.entries, np.cumsum(records.lengths)[:-1])
        others.append(records.columns[BESIDE[kind]])
    return entries, np.concatenate(others)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_was_written(tmp_path, kind):
    store = verify_store(synthetic.write_store(tmp_path / "store", kind))
    entries, other = expected_records(kind, 40)
    assert len(store.manifest.shards) > 2
    assert store.num_records == len(entries)
    index = np.random.default_rng().integers(0, len(entries), 500)
    found = store.read(index)
    for place, record in enumerate(index):
        size = len(entries[record])
        assert (found.entries[place, :size] == entries[record]).all()
        assert (found.entries[place, size:] == PAD).all()
    assert set(found.columns) == {"entries", BESIDE[kind]}
    assert (found.columns[BESIDE[kind]] == other[index]).all()


def test_rows_point_at_their_records(tmp_path):
    store = open_store(synthetic.write_store(tmp_path / "store"))
    rows = pq.read_table(tmp_path / "store" / "data").to_pylist()
    assert len(rows) == store.num_rows == sum(i % 7 != 3 for i in range(40))
    starts = np.array([row["teacher_start"] for row in rows])
    assert len(set(pointer_tag(starts).tolist())) == 1
    assert pointer_tag(starts)[0] == pointer_tag(np.int64(store.manifest.pointer_base))
    assert pointer_record(starts)[0] == 0
    assert (np.diff(pointer_record(starts)) == [row["num_records"] for row in rows[:-1]]).all()


def test_is_a_hugging_face_dataset(tmp_path):
    path = str(synthetic.write_store(tmp_path / "store"))
    rows = datasets.load_dataset(path, cache_dir=tmp_path / "cache")
    assert list(rows) == ["train"] and len(rows["train"]) == open_store(path).num_rows
    stream = datasets.load_dataset(path, streaming=True, split="train")
    assert next(iter(stream))["id"] == "row-0"


def test_out_of_range_and_empty_reads(tmp_path):
    store = open_store(synthetic.write_store(tmp_path / "store"))
    assert store.read(np.zeros(0, np.int64)).entries.shape[0] == 0
    for index in (-1, store.num_records):
        with pytest.raises(StoreError, match="which holds"):
            store.read(np.array([index]))


def _read_in_child(store, index, queue):
    queue.put(store.read(index).entries)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(tmp_path, method):
    store = open_store(synthetic.write_store(tmp_path / "store"))
    index = np.arange(store.num_records)
    here = store.read(index).entries
    assert (pickle.loads(pickle.dumps(store)).read(index).entries == here).all()
    if method == "spawn":
        return
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, index, queue))
    child.start()
    assert (queue.get(timeout=30) == here).all()
    child.join()


WRITER = """
import sys
from pathlib import Path
from axolotl_distill.store import StoreWriter
from support import synthetic
path, kind, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
with StoreWriter.create_or_resume(path, synthetic.manifest(kind, stop)) as writer:
    print("ready", flush=True)
    synthetic.fill(writer, kind, stop, 60)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_survives_kill_9(tmp_path, kind):
    """Killed at random moments and run again, it ends as if it had never been killed."""
    rows = 400
    command = [sys.executable, "-c", WRITER, str(tmp_path / "killed"), kind, str(rows)]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    kills = 0
    while True:
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        if kills < 6:
            time.sleep(random.uniform(0.0, 0.06))
            child.send_signal(signal.SIGKILL)
        kills += 1
        if child.wait() == 0:
            break
    assert kills > 3
    synthetic.write_store(tmp_path / "whole", kind, rows, every=60)
    killed, whole = verify_store(tmp_path / "killed"), verify_store(tmp_path / "whole")
    assert killed.num_rows == whole.num_rows
    index = np.arange(whole.num_records)
    a, b = killed.read(index), whole.read(index)
    for name in ("entries", BESIDE[kind]):
        assert (a.columns[name] == b.columns[name]).all()
    ids = [
        [row["id"] for row in pq.read_table(s.path / "data", columns=["id"]).to_pylist()]
        for s in (killed, whole)
    ]
    assert ids[0] == ids[1]
    named = {name for shard in killed.manifest.shards for name in shard.files}
    on_disk = {
        f"{folder}/{file.name}"
        for folder in ("data", "teacher")
        for file in (killed.path / folder).iterdir()
    }
    assert on_disk == named


def test_uncommitted_files_do_not_count(tmp_path):
    path = tmp_path / "store"
    writer = StoreWriter.create_or_resume(path, synthetic.manifest(rows=20))
    synthetic.fill(writer, "nucleus", 10, every=10**9)
    writer.commit()
    (path / "teacher" / "shard-00001.safetensors").write_bytes(b"half a shard")
    (path / "data" / "shard-00001.parquet.tmp").write_bytes(b"half a shard")
    writer.abandon()
    with pytest.raises(StoreError, match="not complete"):
        open_store(path)
    with StoreWriter.create_or_resume(path, synthetic.manifest(rows=20)) as writer:
        assert writer.next_source_row == 10
        synthetic.fill(writer, "nucleus", 20, every=10**9)
    verify_store(path)


def test_another_header_is_not_resumed(tmp_path):
    path = synthetic.write_store(tmp_path / "store")
    changed = synthetic.manifest(temperatures=[1.0, 3.0])
    with pytest.raises(StoreError, match=r"another `temperatures`.*\[1.0, 2.0\].*\[1.0, 3.0\]"):
        StoreWriter.create_or_resume(path, changed)
    with pytest.raises(StoreError, match="another `payloads`"):
        StoreWriter.create_or_resume(path, synthetic.manifest("topk"))


def test_one_writer_at_a_time(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path / "store", synthetic.manifest())
    with pytest.raises(StoreError, match="another process"):
        StoreWriter.create_or_resume(tmp_path / "store", synthetic.manifest())
    writer.abandon()
    StoreWriter.create_or_resume(tmp_path / "store", synthetic.manifest()).abandon()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="other files"):
        StoreWriter.create_or_resume(tmp_path, synthetic.manifest())
    assert (tmp_path / "thesis.tex").exists()


class TestDamage:
    """Each kind of damage is named, with the file and the remedy."""

    @pytest.fixture
    def path(self, tmp_path):
        return synthetic.write_store(tmp_path / "store")

    def test_no_store(self, tmp_path):
        with pytest.raises(StoreMissingError, match="axolotl distill capture"):
            open_store(tmp_path)

    def test_missing_shard(self, path):
        (path / "teacher" / "shard-00001.safetensors").unlink()
        with pytest.raises(StoreMissingError, match=r"shard-00001.safetensors is missing"):
            open_store(path)

    def test_cut_file(self, path):
        file = path / "teacher" / "shard-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(StoreCorruptError, match=r"shard-00000.safetensors has \d+ bytes"):
            open_store(path)

    @pytest.mark.parametrize(
        "name", ["teacher/shard-00001.safetensors", "data/shard-00000.parquet"]
    )
    def test_flipped_byte(self, path, name):
        file = path / name
        data = bytearray(file.read_bytes())
        data[random.randrange(len(data) // 2, len(data))] ^= 0x10
        file.write_bytes(data)
        with pytest.raises(StoreCorruptError, match=re.escape(name) + ".*sha256"):
            verify_store(path)

    def test_newer_version(self, path):
        synthetic.edit_manifest(path, lambda values: values.update(version=99))
        with pytest.raises(StoreError, match=r"version 99.*Upgrade"):
            open_store(path)

    def test_not_json(self, path):
        (path / "manifest.json").write_text("{")
        with pytest.raises(
            StoreCorruptError, match=r"manifest.json is not .* as it was written.*Copy"
        ):
            open_store(path)
