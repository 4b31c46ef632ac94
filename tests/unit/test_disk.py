"""Files that survive whatever is killed, and rows out of files."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import Timeout

from axolotl_distill.disk import rows
from axolotl_distill.disk.atomic import atomically, write_atomically
from axolotl_distill.disk.journal import Journal
from axolotl_distill.disk.lock import LOCK, file_lock, lock_folder
from axolotl_distill.disk.refused import refusals
from axolotl_distill.disk.scratch import scratch_folder
from axolotl_distill.errors import GenerateError, StoreError, UnreadableError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from axolotl_distill.disk.lock import lock_folder
from axolotl_distill.disk.scratch import scratch_folder
from axolotl_distill.errors import StoreError
lock = lock_folder(Path(sys.argv[1]), StoreError, "key")
with scratch_folder(Path(sys.argv[1]), "tmp-") as folder:
    (folder / "half").write_text("x")
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder's lock, and a scratch folder in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_ends_with_its_holder_however_that_ends(tmp_path, holder):
    with pytest.raises(GenerateError, match="being written by another process"):
        lock_folder(tmp_path, GenerateError, "`key`")
    with scratch_folder(tmp_path, "tmp-"):
        assert len(list(tmp_path.glob("tmp-*"))) == 2, "the other's is in use"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock_folder(tmp_path, GenerateError, "`key`").release()
    with scratch_folder(tmp_path, "tmp-") as folder:
        assert list(tmp_path.glob("tmp-*")) == [folder], "what the killed one left is gone"
    assert not list(tmp_path.glob("tmp-*")) and (tmp_path / LOCK).exists()


def test_a_lock_keeps_the_own_process_out_too(tmp_path):
    lock = lock_folder(tmp_path, StoreError, "`key`")
    with pytest.raises(StoreError, match="another process"):
        lock_folder(tmp_path, StoreError, "`key`")
    with pytest.raises(Timeout):
        file_lock(tmp_path / LOCK).acquire(timeout=0)
    lock.release()
    lock_folder(tmp_path, StoreError, "`key`").release()


def test_a_folder_without_locks(tmp_path, monkeypatch):
    """NFS without a lock daemon: no marker file takes the lock's place."""
    import fcntl

    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StoreError, match=r"cannot be locked \(Function not implemented\).*local"):
        lock_folder(tmp_path, StoreError, "`key`")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(KeyError), atomically(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with atomically(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "left, kept",
    [
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b": 2}', b'{"a": 1}\n{"b": 2}\n'),
        (b'{"a": 1}\n{"b": ', b'{"a": 1}\n'),
        (b'{"a": 1}\n12', b'{"a": 1}\n'),
        (b"\x00" * 200_000, b""),
        (b'{"a": 1}\n' + b"x" * 200_000, b'{"a": 1}\n'),
        (b"", b""),
    ],
)
def test_a_torn_line_is_cut_and_a_whole_one_kept(tmp_path, left, kept):
    path = tmp_path / "below" / "journal.jsonl"
    path.parent.mkdir()
    path.write_bytes(left)
    with Journal(path) as journal:
        assert path.read_bytes() == kept and journal.size == len(kept)
        journal.append(b'{"c": 3}\n')
    assert path.read_bytes() == kept + b'{"c": 3}\n'


FULL = """
import resource, signal, sys
from pathlib import Path
from axolotl_distill.disk.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (25, resource.RLIM_INFINITY))
journal = Journal(Path(sys.argv[1]))
journal.append(b'{"row": 1}\\n')
try:
    journal.append(b'{"row": 2, "long": true}\\n')
except OSError as error:
    print(error.errno)
journal.append(b'{"row": 3}\\n')
"""


def test_what_does_not_fit_is_not_half_there(tmp_path):
    path = tmp_path / "journal.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "27\n" and path.read_bytes() == b'{"row": 1}\n{"row": 3}\n'


@pytest.mark.parametrize(
    "number, said", [(28, "is full. Make room"), (13, "Use another folder (`x`)"), (5, "Mend that")]
)
def test_what_a_disk_refuses_says_what_to_do(tmp_path, number, said):
    with pytest.raises(StoreError) as found, refusals(tmp_path, StoreError, "`x`"):
        raise OSError(number, os.strerror(number))
    assert said in str(found.value) and str(tmp_path) in str(found.value)
    with pytest.raises(GenerateError, match="ours"), refusals(tmp_path, StoreError, "`x`"):
        raise GenerateError("ours")


def test_lines_and_what_is_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n[2]\n{"a": \xff}\n{"a": "\\ud83d"}\n{"a": 5')
    with path.open("rb") as file:
        seen = list(rows.json_lines(file))
    assert [(line.number, line.start, line.row) for line in seen] == [
        (1, 0, {"a": 1}),
        (4, 13, None),
        (5, 17, None),
        (6, 26, {"a": "\ud83d"}),
        (7, 42, None),
    ]
    assert seen[1].fault == "it is a list, not an object" and "utf-8" in seen[2].fault
    assert [line.is_torn for line in seen] == [False, False, False, False, True]
    by_number = rows.JsonLines([path, path])
    assert len(by_number) == 8 and by_number[4] == {"a": 1}
    with pytest.raises(UnreadableError, match=r"line 4 \(row 6 of all\).*list"):
        by_number[5]


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LONGEST", 1000)
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + b"[" * 1001)
    with pytest.raises(UnreadableError, match="line 2 is longer than 1,000 bytes"):
        list(rows.json_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "list.json").write_bytes(b"[" + b"1," * 600 + b"1]")
    with pytest.raises(UnreadableError, match="one list of more than"):
        list(rows.json_rows(tmp_path / "list.json"))


ROWS = [{"a": 1, "text": "é"}, {"a": 2, "text": "x\n"}]


def test_the_same_rows_out_of_every_kind_of_file(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "r.jsonl").write_bytes(lines)
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(lines))
    with pa.output_stream(str(tmp_path / "r.jsonl.zst"), compression="zstd") as file:
        file.write(lines)
    (tmp_path / "r.json").write_text(" " + json.dumps(ROWS, indent=1))
    for name in ("r.jsonl", "r.jsonl.gz", "r.jsonl.zst", "r.json"):
        seen = list(rows.json_rows(tmp_path / name))
        assert [(line.number, line.row) for line in seen] == [(1, ROWS[0]), (2, ROWS[1])], name
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    assert list(rows.parquet_rows(tmp_path / "r.parquet")) == ROWS
    assert list(rows.parquet_table(tmp_path / "r.parquet")) == ROWS
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"a": saved, "b": saved}).save_to_disk(tmp_path / "two")
    assert rows.is_saved_dataset(tmp_path / "one") and rows.is_saved_dataset(tmp_path / "two")
    assert not rows.is_saved_dataset(tmp_path)
    assert list(rows.saved_rows(tmp_path / "one")) == ROWS
    assert list(rows.saved_rows(tmp_path / "two", "b")) == ROWS
    for split in (None, "c"):
        with pytest.raises(UnreadableError, match=r"splits? .*a, b\. Name one"):
            rows.saved_rows(tmp_path / "two", split)


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.zst", "r.jsonl", "r.json"])
def test_files_that_are_not_what_their_name_says(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b\x08\x00 and so on")
    try:
        seen = list(rows.json_rows(path))
    except UnreadableError as error:
        assert str(path) in str(error)
    else:
        assert seen and all(line.row is None for line in seen)
    with pytest.raises(UnreadableError, match=r"cannot be read.*may be damaged"):
        list(rows.parquet_rows(path))
    with pytest.raises(UnreadableError, match="cannot be read"):
        list(rows.json_rows(tmp_path / "missing.jsonl"))


def test_a_lock_is_waited_for(tmp_path, holder):
    start = time.monotonic()
    with pytest.raises(Timeout):
        file_lock(tmp_path / LOCK).acquire(timeout=0.3)
    assert time.monotonic() - start >= 0.3
