"""Damaged files are never read in silence, and never cost more than a batch."""

import random
import shutil
import struct
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from support import synthetic

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store import open_store, verify_store

RECORDS, ROWS = "teacher/shard-00000.safetensors", "data/shard-00000.parquet"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return synthetic.write_store(tmp_path / "store", rows=20, every=60)


def damage(file, rng):
    """Flip, cut, insert or repeat bytes; returns the bytes that were there."""
    before = file.read_bytes()
    data = bytearray(before)
    place = rng.randrange(len(data))
    how = rng.choice(["flip", "cut", "insert", "zero", "move"])
    if how == "flip":
        data[place] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[place:]
    elif how == "insert":
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    elif how == "zero":
        data[place : place + 8] = bytes(len(data[place : place + 8]))
    else:
        data[place : place + 4], data[:4] = data[:4], data[place : place + 4]
    file.write_bytes(data)
    return before


@pytest.mark.parametrize("name", [RECORDS, ROWS])
def test_any_damage_is_seen_when_a_store_is_opened(path, name):
    file, rng = path / name, random.Random(7)
    for _ in range(40):
        before = damage(file, rng)
        if file.read_bytes() != before:
            with pytest.raises(StoreCorruptError, match=f"{name}.*[Cc]opy"):
                open_store(path)
        file.write_bytes(before)
    open_store(path)


@pytest.mark.parametrize("name", [RECORDS, ROWS])
def test_damage_that_brings_its_own_hash(path, name):
    """Whoever made the manifest agree: our errors alone, or what is read is a whole record."""
    file, rng = path / name, random.Random(8)
    manifest = (path / "manifest.json").read_text()
    refused = 0
    for _ in range(80):
        before = damage(file, rng)
        try:
            synthetic.rehash(path, name)
            store = open_store(path)
            found = store.read(np.arange(store.num_records))
            assert found.entries.shape[1] <= 9
            assert synthetic.encoding.are_entries(
                found.entries[found.entries != synthetic.encoding.PAD], synthetic.VOCAB
            )
            verify_store(path)
        except StoreError:
            refused += 1
        finally:
            file.write_bytes(before)
            (path / "manifest.json").write_text(manifest)
    assert refused > 20


def test_shards_of_other_records_are_not_trained_on(path, tmp_path):
    other = synthetic.write_store(tmp_path / "other", "topk", rows=20, every=60)
    shutil.copy(other / RECORDS, path / RECORDS)
    with pytest.raises(StoreCorruptError, match=r"bytes, the manifest says|sha256"):
        open_store(path)


class TestAfterTheCheck:
    """A file that changes while a run has the store open."""

    def rewritten(self, path, change):
        """The store, open, and its records' file changed under it."""
        store = open_store(path)
        arrays = {name: array.copy() for name, array in load_file(path / RECORDS).items()}
        change(arrays)
        size = (path / RECORDS).stat().st_size
        save_file(arrays, path / RECORDS)
        assert (path / RECORDS).stat().st_size == size
        return store

    @pytest.mark.parametrize("bit", [0, 12, 31])
    def test_where_a_record_lies(self, path, bit):
        def change(arrays):
            if bit == 0:
                arrays["lengths"][3] += 10
            arrays["starts"][0] ^= np.uint32(1 << bit if bit else 0)

        store = self.rewritten(path, change)
        with pytest.raises(StoreCorruptError, match=r"its lengths are damaged.*[Cc]opy"):
            store.read(np.array([2, 3]))

    @pytest.mark.parametrize("entry", [0xFFFFFFFF, synthetic.VOCAB << 19])
    def test_an_id(self, path, entry):
        def change(arrays):
            arrays["entries"][0] = entry

        store = self.rewritten(path, change)
        with pytest.raises(StoreCorruptError, match="its entries are damaged"):
            store.read(np.array([0]))

    def test_a_file_that_is_cut_or_gone(self, path):
        store = open_store(path)
        data = (path / RECORDS).read_bytes()
        (path / RECORDS).write_bytes(data[:-2])
        with pytest.raises(StoreCorruptError, match="bytes, the manifest says"):
            store.read(np.array([0]))
        (path / RECORDS).unlink()
        with pytest.raises(StoreMissingError, match="is missing"):
            store.read(np.array([0]))


HEADERS = {
    "length beyond the file": lambda header, data: struct.pack("<Q", 2**62) + header + data,
    "length of nothing": lambda header, data: struct.pack("<Q", 0) + header + data,
    "no object": lambda header, data: struct.pack("<Q", 2) + b"[]" + data,
    "deep": lambda header, data: struct.pack("<Q", 60_000) + b"[" * 60_000 + data,
    "other type": lambda h, d: struct.pack("<Q", len(h)) + h.replace(b'"I16"', b'"F16"') + d,
    "other place": lambda h, d: struct.pack("<Q", len(h)) + h.replace(b":[0,", b":[4,") + d,
    "nothing": lambda header, data: b"",
}  # fmt: skip


@pytest.mark.parametrize("make", HEADERS.values(), ids=HEADERS)
def test_a_header_is_not_trusted(path, make):
    data = (path / RECORDS).read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    (path / RECORDS).write_bytes(make(data[8:size], data[size:]))
    synthetic.rehash(path, RECORDS)
    with pytest.raises(StoreCorruptError, match=f"{RECORDS}|shards.0"):
        open_store(path)


def changed_rows(path, change, **options):
    rows = pq.read_table(path / ROWS).to_pydict()
    change(rows)
    schema = pq.read_schema(path / ROWS)
    names = [name for name in schema.names if name in rows]
    pq.write_table(
        pa.table({n: pa.array(rows[n], schema.field(n).type) for n in names}),
        path / ROWS,
        **{"use_dictionary": False, **options},
    )
    synthetic.rehash(path, ROWS)


def row_changes():
    return {
        "column gone": (lambda rows: rows.pop("labels"), "its columns are"),
        "row gone": (lambda rows: [column.pop() for column in rows.values()], "rows, the manifest"),
        "label more": (lambda rows: rows["labels"][1].append(-100), "as many labels"),
        "id too large": (lambda rows: rows["input_ids"][0].__setitem__(1, 5000), "vocabulary"),
        "id below zero": (lambda rows: rows["input_ids"][0].__setitem__(1, -1), "vocabulary"),
        "label too large": (lambda rows: rows["labels"][0].__setitem__(3, 5000), "vocabulary"),
        "missing": (lambda rows: rows["labels"].__setitem__(0, None), "`labels` is missing"),
        "missing inside": (lambda rows: rows["labels"][0].__setitem__(2, None), "is missing"),
        "unsupervised": (lambda rows: rows["labels"][0].__setitem__(3, -100), "num_records"),
        "pointer": (lambda rows: rows["teacher_start"].__setitem__(1, 0), "teacher_start"),
    }


@pytest.mark.parametrize("name", row_changes())
def test_rows_that_contradict_their_records(path, name):
    change, said = row_changes()[name]
    changed_rows(path, change)
    with pytest.raises(StoreCorruptError, match=f"{ROWS}.*{said}.*[Cc]opy"):
        verify_store(path)


def test_a_small_file_of_much_text_is_not_unpacked(path):
    """3 kB of Parquet that unpack to 40 MB."""
    changed_rows(path, lambda rows: rows["text"].__setitem__(0, "a" * 40_000_000))
    assert (path / ROWS).stat().st_size > 1000
    start = time.monotonic()
    with pytest.raises(StoreCorruptError, match="unpacks to"):
        open_store(path)
    assert time.monotonic() - start < 5


def varint(number, length=0):
    """A zigzag number as Thrift writes it, drawn out to `length` bytes."""
    number, found = number * 2, bytearray()
    while number > 127 or len(found) < length - 1:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_pages_that_unpack_to_more_than_the_footer_says(path):
    """The footer agrees with the manifest, and the header of a page asks for 40 MB."""
    changed_rows(path, lambda rows: rows["text"].__setitem__(0, "a" * 40_000_000))
    about = pq.ParquetFile(path / ROWS).metadata.row_group(0)
    (text,) = [about.column(i) for i in range(6) if about.column(i).path_in_schema == "text"]
    data = (path / ROWS).read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    said = varint(text.total_uncompressed_size)
    assert data.count(said, footer) == 1
    data = data[:footer] + data[footer:].replace(said, varint(300, len(said)))
    (path / ROWS).write_bytes(data)
    synthetic.rehash(path, ROWS)
    before = peak()
    with pytest.raises(StoreCorruptError, match=r"column text unpack to 4\d{7} bytes and . values"):
        open_store(path)
    assert peak() - before < 20_000_000, "nothing was unpacked"


def peak():
    return pa.default_memory_pool().max_memory()


def test_a_text_that_stands_for_many(path):
    """A dictionary has a text once that every row has."""
    changed_rows(path, lambda rows: rows.update(text=["a" * 200] * len(rows["text"])))
    open_store(path)
    changed_rows(path, lambda rows: None, use_dictionary=["text"])
    with pytest.raises(StoreCorruptError, match="texts of its column text are not plain"):
        open_store(path)


def logprobs_of_nobody(path):
    arrays = {name: array.copy() for name, array in load_file(path / RECORDS).items()}
    arrays["entries"] &= ~np.uint32((1 << 19) - 1)
    save_file(arrays, path / RECORDS)
    synthetic.rehash(path, RECORDS)


def test_log_probabilities_that_are_none(path):
    logprobs_of_nobody(path)
    for opens in (open_store, verify_store):
        with pytest.raises(StoreCorruptError, match=r"the probabilities of a record sum to [2-9]"):
            opens(path)


def changed_records(path, change):
    arrays = {name: array.copy() for name, array in load_file(path / RECORDS).items()}
    change(arrays)
    save_file(arrays, path / RECORDS)
    synthetic.rehash(path, RECORDS)


def test_a_tail_that_contradicts_its_entries(path):
    """Of the entries and the tail one was made up: neither shows it alone."""

    def change(arrays):
        tail = arrays["tail"][:, 0]
        assert abs(int(tail[5])) < 8000
        tail[5] += 3000

    changed_records(path, change)
    with pytest.raises(StoreCorruptError, match=r"and its tail sum to .*not 1.*[Cc]opy"):
        open_store(path)


def test_random_log_probabilities_are_not_trained_on(path):
    """Likeliest first, ids once each, within bounds, and of no distribution."""
    rng = np.random.default_rng(0)

    def change(arrays):
        stops = np.cumsum(arrays["lengths"], dtype=int)
        for start, stop in pairwise([0, *stops.tolist()]):
            logprobs = -np.sort(rng.uniform(1, 30, stop - start))
            ids = rng.choice(synthetic.VOCAB, stop - start, replace=False)
            arrays["entries"][start:stop] = synthetic.encoding.encode_logprobs(
                ids, logprobs, synthetic.VOCAB
            )

    changed_records(path, change)
    with pytest.raises(StoreCorruptError, match="not of one distribution"):
        open_store(path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda arrays: arrays["entropy"].__setitem__(3, 9000), "entropy is not between"),
        (lambda arrays: arrays["entropy"].__setitem__(3, -1), "entropy is not between"),
        (
            lambda arrays: arrays["entries"].__setitem__(0, arrays["entries"][0] + 1),
            "do not sum to 2040",
        ),
        (
            lambda arrays: arrays["entries"].__setitem__(0, arrays["entries"][1]),
            "ascend|do not sum",
        ),
    ],
)
def test_draws_that_are_none(tmp_path, monkeypatch, change, said):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = synthetic.write_store(tmp_path / "store", "sampled", rows=20, every=60)
    changed_records(path, change)
    with pytest.raises(StoreCorruptError, match=said):
        open_store(path)
