"""The writer: killed anywhere, on a full disk, in folders that take nothing; its cost a commit."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from support import synthetic

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store import RecordBatch, StoreWriter, open_store, verify_store

ROOT = Path(__file__).resolve().parents[2]
ROWS, EVERY = 60, 60

# One process writes again and again, a child of it each time, and kills it; so only the first
# imports anything.
KILLER = """
import os, random, signal, sys, time
from axolotl_distill.store import StoreWriter, open_store, verify_store
from support import synthetic
assert "torch" not in sys.modules and "transformers" not in sys.modules
path, rows, every, kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(int(sys.argv[5]))
header = synthetic.manifest("nucleus", rows)
killed = committed = 0
while True:
    child = os.fork()
    if child == 0:
        with StoreWriter.create_or_resume(path, header) as writer:
            synthetic.fill(writer, "nucleus", rows, every)
        os._exit(0)
    if killed < kills:
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        killed += 1
    if os.waitpid(child, 0)[1] == 0:
        break
    try:
        found = open_store(path, allow_incomplete=True).num_rows
    except FileNotFoundError:
        found = 0
    assert found >= committed, (found, committed)
    committed = found
print(killed, verify_store(path).num_rows)
"""


def test_killed_anywhere(tmp_path):
    """Rows that were there after a kill are there after the next; the end is that of one run."""
    seed = random.randrange(2**31)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "s", str(ROWS), str(EVERY), "60", str(seed)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    kills, rows = map(int, done.stdout.split())
    synthetic.write_store(tmp_path / "whole", rows=ROWS, every=EVERY)
    seen, expected = verify_store(tmp_path / "s"), verify_store(tmp_path / "whole")
    assert kills > 5 and rows == expected.num_rows
    index = np.arange(expected.num_records)
    assert (seen.read(index).entries == expected.read(index).entries).all()
    assert not (tmp_path / "s" / "shards.jsonl").exists()
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.fixture
def begun(tmp_path):
    """A store with some shards, whose writer was killed."""
    path = tmp_path / "store"
    writer = StoreWriter.create_or_resume(path, synthetic.manifest())
    synthetic.fill(writer, "nucleus", 30, EVERY)
    writer.abandon()
    return path


def finish(path):
    with StoreWriter.create_or_resume(path, synthetic.manifest()) as writer:
        resumed = writer.next_source_row
        synthetic.fill(writer, "nucleus", 40, EVERY)
    assert verify_store(path).num_rows == sum(index % 7 != 3 for index in range(40))
    return resumed


def test_a_line_torn_anywhere_is_mended(begun):
    journal = begun / "shards.jsonl"
    data = journal.read_bytes()
    lines = data.splitlines(keepends=True)
    whole = len(data) - len(lines[-1])
    stop = json.loads(lines[-2])["source_stop"]
    for cut in random.sample(range(whole, len(data)), 12):
        journal.write_bytes(data[:cut])
        writer = StoreWriter.create_or_resume(begun, synthetic.manifest())
        assert writer.next_source_row == stop
        writer.abandon()
        # The shard whose line was torn is not there any more, so it is written anew.
        assert not (begun / "data" / f"shard-{len(lines) - 1:05d}.parquet").exists()
    assert finish(begun) == stop


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0].replace(b'"rows":', b'"rows": '), b"{}\n"],
        lambda lines: [lines[0], b"[]\n"],
        lambda lines: [lines[0], b"\x00" * 40 + b"\n"],
        lambda lines: [lines[0].replace(b'"entries":', b'"entries":1'), *lines[1:]],
    ],
)
def test_a_line_that_was_changed_is_named(begun, change):
    """And nothing is deleted for it."""
    journal = begun / "shards.jsonl"
    journal.write_bytes(b"".join(change(journal.read_bytes().splitlines(keepends=True))))
    files = sorted(begun.rglob("shard-*"))
    with pytest.raises(StoreCorruptError, match=r"shards.jsonl, line \d is not as it was written"):
        StoreWriter.create_or_resume(begun, synthetic.manifest())
    assert sorted(begun.rglob("shard-*")) == files


def test_a_store_whose_shards_are_gone_is_not_gone_on_with(begun):
    (begun / "teacher" / "shard-00000.safetensors").unlink()
    with pytest.raises(StoreMissingError, match=r"shard-00000.safetensors is missing"):
        StoreWriter.create_or_resume(begun, synthetic.manifest())


def test_other_files_beside_shards_stay(begun):
    mine = begun / "data" / "shard-notes.txt"
    mine.write_text("years of work")
    finish(begun)
    assert mine.read_text() == "years of work"


def test_a_commit_writes_no_more_for_many_shards(tmp_path):
    """What is written for the 300th shard is what was for the third, but for its numbers, and no
    more is called for it."""
    made = synthetic.row(0, "nucleus")
    source = synthetic.about_rows([made] * 300)
    writer = StoreWriter.create_or_resume(tmp_path, synthetic.manifest(source=source))
    header = (tmp_path / "manifest.json").read_bytes()
    sizes, calls = [], []

    def count(*_):
        calls[-1] += 1

    for index in range(300):
        writer.append(**{**made, "source_row": index})
        calls.append(0)
        sys.setprofile(count)
        writer.commit()
        sys.setprofile(None)
        sizes.append((tmp_path / "shards.jsonl").stat().st_size)
        assert (tmp_path / "manifest.json").read_bytes() == header
    steps = np.diff(sizes)
    assert steps.max() - steps.min() < 30
    # The first one opens the journal, the second finds what that imported. Now and then the garbage
    # collector calls something within one of them.
    assert median(calls[2:50]) == median(calls[-50:])
    writer.close()
    assert len(open_store(tmp_path).manifest.shards) == 300


def test_an_end_before_the_source_ends_is_no_end(tmp_path):
    writer = StoreWriter.create_or_resume(tmp_path, synthetic.manifest())
    synthetic.fill(writer, "nucleus", 30, EVERY)
    with pytest.raises(StoreError, match=r"not complete.*30 rows.*40 rows.*same command"):
        writer.close()
    assert finish(tmp_path) == 30


FULL = """
import resource, signal, sys
from axolotl_distill.errors import StoreError
from axolotl_distill.store import StoreWriter
from support import synthetic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = StoreWriter.create_or_resume(sys.argv[1], synthetic.manifest())
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with writer:
        synthetic.fill(writer, "nucleus", 40, 60)
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize("most", [100, 1500, 3000])
def test_no_room(tmp_path, most):
    """No file may be larger than `most`: a shard's, or the journal's after some shards."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "s", str(most)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is full. Make room" in done.stdout and "what was committed is kept" in done.stdout
    finish(tmp_path / "s")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/store", "/sys/store"])
def test_folders_that_take_nothing(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written.*Use another folder"):
        StoreWriter.create_or_resume(tmp_path / place, synthetic.manifest())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"input_ids": [1, 2]}, "tokens"),
        ({"labels": [-100, 2, 3, 4]}, "3 of them supervised"),
        ({"labels": [-100, -100, 3]}, "3 labels"),
        ({"input_ids": [1, synthetic.VOCAB, 2, 3]}, "another tokenizer"),
        ({"labels": [-100, -100, -7, 3]}, "another tokenizer"),
        ({"input_ids": [1] * 5000, "labels": [-100] * 4998 + [1, 1]}, "sequence_len: 4096"),
    ],
)
def test_a_row_that_no_store_can_hold(tmp_path, change, said):
    entries = synthetic.encoding.encode_logprobs(np.array([3, 4]), np.array([-1.0, -1.0]), 5000)
    row = {
        "source_row": 0,
        "row_id": "0-x",
        "input_ids": [1, 2, 3, 4],
        "labels": [-100, -100, 3, 4],
        "text": "half \ud83d",
        "records": RecordBatch(
            {"entries": entries, "tail": np.zeros((2, 2), np.int16)}, np.array([1, 1])
        ),
    }
    writer = StoreWriter.create_or_resume(tmp_path, synthetic.manifest())
    with pytest.raises(StoreError, match=f"row 0-x.*{said}"):
        writer.append(**{**row, **change})
    writer.append(**row)
    writer.commit()
    writer.abandon()


def test_a_manifest_that_makes_no_store_is_refused_before_anything_is_written():
    with pytest.raises(StoreError, match=r"cannot be begun.*without 1.0"):
        synthetic.manifest(temperatures=[2.0])
    with pytest.raises(StoreError, match=r"payloads.0.k"):
        synthetic.manifest(payloads=[{"kind": "topk", "k": 0}])
    with pytest.raises(StoreError, match=r"source.supervised"):
        synthetic.manifest(source={"fingerprint": "s", "num_rows": 3})


def test_what_was_found_at_the_beginning_need_not_be_said_again(tmp_path):
    """A capture that goes on does not look at its first rows anew."""
    header = synthetic.manifest()
    header.teacher["check"] = {"rows": 8, "tokens": 99, "carried": 0.5}
    writer = StoreWriter.create_or_resume(tmp_path / "store", header)
    synthetic.fill(writer, "nucleus", 30, EVERY)
    writer.abandon()
    assert finish(tmp_path / "store") > 0
    assert verify_store(tmp_path / "store").manifest.teacher["check"]["carried"] == 0.5
