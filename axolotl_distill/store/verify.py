"""Holding a store against its own manifest: hashes, and what the numbers must satisfy."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from axolotl_distill.errors import StoreCorruptError
from axolotl_distill.store.encoding import PAD, decode_counts
from axolotl_distill.store.manifest import Shard
from axolotl_distill.store.reader import TeacherStore, open_store

IGNORE = -100
AGAIN = "Copy the store again from where it was captured, or capture it again."


def verify_store(path: str | Path) -> TeacherStore:
    """Read every byte of a store. Returns it opened.

    Raises StoreCorruptError naming the first file whose hash differs from the manifest's, or
    whose content contradicts it.
    """
    store = open_store(path)
    for number, shard in enumerate(store.manifest.shards):
        for name, about in shard.files.items():
            with (store.path / name).open("rb") as file:
                seen = hashlib.file_digest(file, "sha256").hexdigest()
            if seen != about["sha256"]:
                raise StoreCorruptError(
                    f"{store.path / name} has sha256 {seen[:16]}…, the manifest says "
                    f"{about['sha256'][:16]}…: its bytes were changed. {AGAIN}"
                )
        _check_records(store, number, shard)
        _check_rows(store, shard)
    return store


def _check_records(store: TeacherStore, number: int, shard: Shard) -> None:
    name = f"teacher/{shard.name}.safetensors"
    arrays = store.arrays(number)
    method = store.manifest.method
    entries, offsets = arrays["entries"], arrays.get("offsets")
    _require(entries.size == shard.entries, store, name, "number of entries", shard.entries)
    _require(len(arrays["tail"]) == shard.records, store, name, "number of records", shard.records)
    if offsets is None:
        _require(
            entries.size == shard.records * method["k"], store, name, "entries a record", method
        )
        offsets = np.arange(shard.records + 1) * method["k"]
    steps = np.diff(offsets.astype(np.int64))
    whole = offsets[0] == 0 and offsets[-1] == entries.size and bool((steps > 0).all())
    _require(whole, store, name, "offsets", "rising from 0 to the number of entries")
    if method["kind"] == "topk":
        most = bool((steps <= method["k"]).all())
        _require(most, store, name, "entries a record", f"at most {method['k']}")
    _require(not bool((entries == PAD).any()), store, name, "entries", "no padding on disk")
    ids, counts = decode_counts(entries, store.manifest.vocab_size)
    known = int(ids.max(initial=0)) < store.manifest.vocab_size
    _require(known, store, name, "token ids", f"below {store.manifest.vocab_size}")
    if method["kind"] == "sampled":
        drawn = np.add.reduceat(counts, offsets[:-1].astype(np.int64))
        _require(bool((drawn == method["draws"]).all()), store, name, "draws", method["draws"])


def _check_rows(store: TeacherStore, shard: Shard) -> None:
    name = f"data/{shard.name}.parquet"
    table = pq.read_table(store.path / name, columns=["labels", "teacher_start", "num_records"])
    _require(table.num_rows == shard.rows, store, name, "number of rows", shard.rows)
    counts = table["num_records"].to_numpy()
    supervised = [
        int((np.asarray(labels.as_py()[1:]) != IGNORE).sum()) for labels in table["labels"]
    ]
    _require(supervised == counts.tolist(), store, name, "num_records", "supervised tokens")
    first = store.manifest.pointer_base + shard.first_record
    starts = first + np.concatenate([[0], np.cumsum(counts)[:-1]])
    in_order = table["teacher_start"].to_numpy().tolist() == starts.tolist()
    _require(in_order, store, name, "teacher_start", "rows in the order of their records")


def _require(holds: bool, store: TeacherStore, name: str, what: str, expected: object) -> None:
    if not holds:
        raise StoreCorruptError(
            f"{store.path / name}: {what} is not as expected ({expected}). {AGAIN}"
        )
