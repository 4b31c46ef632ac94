"""Stores made of stores: what is in them, what is refused, and kills."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import synthetic
from support.cli import distill_here

from axolotl_distill.errors import StoreError
from axolotl_distill.store import open_store, verify_store
from axolotl_distill.store.rearrange import merge, reshard, split

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["topk", "nucleus", "sampled", "nucleus+float16", "sampled+int8"]


def content(*paths):
    """Rows and records of stores, one after another, each row with its own records."""
    found = []
    for path in paths:
        store = verify_store(path)
        for row in pq.read_table(Path(path) / "data").to_pylist():
            record = row["teacher_start"] - store.manifest.pointer_base
            records = store.read(np.arange(record, record + row["num_records"]))
            columns = {
                name: [[value for value in record if value != 0xFFFFFFFF] for record in column]
                if name == "entries"
                else column.tolist()
                for name, column in records.columns.items()
            }
            found.append((row["id"], row["input_ids"], row["labels"], row["text"], columns))
    return found


def bytes_of(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*.*")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_and_records(tmp_path, kind):
    one = synthetic.write_store(tmp_path / "one", kind, 20, every=80)
    two = synthetic.write_store(tmp_path / "two", kind, 12, every=40)
    before = bytes_of(one), bytes_of(two)
    expected = content(one)
    made = merge([open_store(one), open_store(two)], tmp_path / "both")
    assert content(tmp_path / "both") == expected + content(two)
    assert made.source["num_rows"] == 32
    assert len(made.shards) == sum(len(open_store(path).manifest.shards) for path in (one, two))

    for size in (1, 60):
        made = reshard(open_store(one), tmp_path / f"of-{size}", size)
        assert content(tmp_path / f"of-{size}") == expected
        assert made.differences(open_store(one).manifest) == []
        assert all(shard.records >= size for shard in made.shards[:-1])
    assert len(open_store(tmp_path / "of-1").manifest.shards) == open_store(one).num_rows

    longest = max(row["num_records"] for row in pq.read_table(one / "data").to_pylist())
    for parts in (3, 17):
        made = split(open_store(one), tmp_path / f"in-{parts}", parts)
        assert content(*sorted((tmp_path / f"in-{parts}").iterdir())) == expected
        assert sum(part.source["num_rows"] for part in made) == 20
        sizes = [part.num_records for part in made]
        assert parts == 17 or max(sizes) - min(sizes) <= 2 * longest, sizes
    thirds = [open_store(path) for path in sorted((tmp_path / "in-3").iterdir())]
    joined = merge(thirds, tmp_path / "again")
    assert content(tmp_path / "again") == expected and joined.source["num_rows"] == 20
    assert (bytes_of(one), bytes_of(two)) == before


def test_a_shard_that_is_kept_keeps_its_bytes(tmp_path):
    """What is read of a store and packed again is what was in it."""
    one = synthetic.write_store(tmp_path / "one", "nucleus")
    merge([open_store(one)], tmp_path / "other")
    records = [file.name for file in (one / "teacher").iterdir()]
    assert len(records) > 2
    for name in records:
        theirs = (tmp_path / "other" / "teacher" / name).read_bytes()
        assert theirs == (one / "teacher" / name).read_bytes()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"temperatures": [1.0, 3.0]}, r"temperatures is \[1.0, 2.0\] in the first"),
        ({"payloads": [{"kind": "nucleus", "p": 0.5, "max_k": 9}]}, "payloads.nucleus"),
        ({"tokenizer": {"fingerprint": "e" * 64, "name": "made-up"}}, "tokenizer.fingerprint"),
        ({"teacher": {"name": "made-up", "dtype": "float32", "weights": "1"}}, "teacher.weights"),
        ({"tail_estimated": [2.0]}, "tail_estimated"),
    ],
)
def test_stores_that_differ_are_not_merged(tmp_path, change, named):
    from axolotl_distill.store import StoreWriter

    one = synthetic.write_store(tmp_path / "one")
    header = synthetic.manifest(**change)
    with StoreWriter.create_or_resume(tmp_path / "two", header) as writer:
        synthetic.fill(writer, "nucleus", 40, 10**9)
    with pytest.raises(StoreError, match=f"not captured alike.*{named}"):
        merge([open_store(one), open_store(tmp_path / "two")], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_store_that_is_named_twice(tmp_path):
    one = open_store(synthetic.write_store(tmp_path / "one"))
    (tmp_path / "link").symlink_to(tmp_path / "one")
    with pytest.raises(StoreError, match="one is named twice"):
        merge([one, open_store(tmp_path / "link")], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_one_name_for_two_tokens(tmp_path):
    from axolotl_distill.store import StoreWriter

    stores = []
    for name, text in (("one", {"<a>": 7}), ("two", {"<b>": 8}), ("three", {"<b>": 7})):
        about = {"fingerprint": "f" * 64, "name": "made-up", "text": text}
        with StoreWriter.create_or_resume(
            tmp_path / name, synthetic.manifest(tokenizer=about)
        ) as writer:
            synthetic.fill(writer, "nucleus", 40, 10**9)
        stores.append(open_store(tmp_path / name))
    made = merge(stores[:2], tmp_path / "both")
    assert made.tokenizer["text"] == {"<a>": 7, "<b>": 8}
    with pytest.raises(StoreError, match="'<b>' is 7 in one"):
        merge(stores, tmp_path / "all")


def test_outputs_that_are_refused(tmp_path):
    one = open_store(synthetic.write_store(tmp_path / "one"))
    for place in (one.path, one.path / "data" / "inside"):
        with pytest.raises(StoreError, match="lies in, a store that is read"):
            reshard(one, place, 10)
    with pytest.raises(StoreError, match="34 rows, which do not make 35"):
        split(one, tmp_path / "parts", 35)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match=r"other files.*`--output`"):
        merge([one], tmp_path / "full")
    reshard(one, tmp_path / "small", 60)
    reshard(one, tmp_path / "small", 60)
    with pytest.raises(StoreError, match="begun in other shards"):
        reshard(one, tmp_path / "small", 90)


def test_the_commands(tmp_path):
    one = synthetic.write_store(tmp_path / "one")
    done = distill_here("store", "split", one, "--parts", 2, "--output", tmp_path / "parts")
    assert "part-00001: " in done.stdout
    parts = sorted((tmp_path / "parts").iterdir())
    done = distill_here("store", "merge", *parts, "--output", tmp_path / "both")
    done = distill_here(
        "store", "reshard", tmp_path / "both", "--shard-records", 200, "--output", tmp_path / "of"
    )
    assert "34 rows" in done.stdout and content(tmp_path / "of") == content(one)
    done = distill_here("store", "merge", one, tmp_path / "no", "--output", "x", check=False)
    assert done.returncode == 1 and "not a teacher store" in done.stderr


COMMAND = """
import os, random, signal, sys, time
from pathlib import Path
from axolotl_distill.store import open_store
from axolotl_distill.store.rearrange import merge, reshard, split
assert "torch" not in sys.modules and "transformers" not in sys.modules
folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
one, two = (open_store(folder / name) for name in ("one", "two"))
tasks = {
    "both": lambda out: merge([one, two], out),
    "of": lambda out: reshard(one, out, 40),
    "in": lambda out: split(one, out, 4),
}
killed = 0
for name, task in tasks.items():
    left = kills
    while True:
        child = os.fork()
        if child == 0:
            task(folder / name)
            os._exit(0)
        if left:
            time.sleep(rng.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
            left -= 1
        if os.waitpid(child, 0)[1] == 0:
            break
        killed += 1
print(killed)
"""


def test_killed_anywhere(tmp_path):
    one = synthetic.write_store(tmp_path / "one", rows=60, every=60)
    two = synthetic.write_store(tmp_path / "two", rows=40, every=90)
    before = bytes_of(one), bytes_of(two)
    seed = random.randrange(2**31)
    print(f"seed: {seed}")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, tmp_path, "12", str(seed)],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) > 10
    assert content(tmp_path / "both") == content(one, two)
    assert content(tmp_path / "of") == content(one)
    assert content(*sorted((tmp_path / "in").iterdir())) == content(one)
    assert (bytes_of(one), bytes_of(two)) == before
