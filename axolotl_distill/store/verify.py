"""Holding a store against its own manifest: hashes, and what the numbers must satisfy."""

from pathlib import Path

import numpy as np

from axolotl_distill.errors import StoreCorruptError
from axolotl_distill.store import encoding
from axolotl_distill.store.manifest import AGAIN
from axolotl_distill.store.reader import TeacherStore, open_store
from axolotl_distill.store.rows import check_rows
from axolotl_distill.store.schema import Shard

# Entries looked at together, so that memory does not grow with a shard.
AT_ONCE = 4 << 20
# By how much rounding, the teacher's and a server's, may lift a record's mass above one.
ABOVE_ROUNDING = 0.06


def verify_store(path: str | Path) -> TeacherStore:
    """Read every byte of a store. Returns it opened.

    Raises StoreCorruptError naming the first file whose hash differs from the manifest's, or
    whose content contradicts it or is no distribution.
    """
    store = open_store(path, check_again=True)
    for number, shard in enumerate(store.manifest.shards):
        _check_records(store, number, shard)
        check_rows(store.path / shard.rows_file, store.manifest, shard)
    return store


def _check_records(store: TeacherStore, number: int, shard: Shard) -> None:
    arrays, most = store.arrays(number), store.manifest.longest_record
    offsets = arrays.get("offsets")
    if offsets is None:
        offsets = np.arange(shard.records + 1, dtype=np.int64) * most
    offsets = offsets.astype(np.int64)
    lengths = np.diff(offsets)
    file = store.path / shard.records_file
    _require(file, "its offsets do not rise from 0 to its entries", [
        offsets[0] == 0, offsets[-1] == shard.entries, (lengths > 0).all(),
    ])  # fmt: skip
    _require(file, f"a record has more than {most} entries", [(lengths <= most).all()])
    step = max(1, AT_ONCE // most)
    for first in range(0, shard.records, step):
        part = offsets[first : first + step + 1]
        entries = np.asarray(arrays["entries"][part[0] : part[-1]])
        _check_distributions(file, store, entries, part - part[0])


def _check_distributions(
    file: Path, store: TeacherStore, entries: np.ndarray, offsets: np.ndarray
) -> None:
    """entries uint32 [E] of R records, offsets int64 [R+1]."""
    vocab_size, method = store.manifest.vocab_size, store.manifest.method
    known = encoding.are_entries(entries, vocab_size)
    _require(file, f"an entry is padding, or its id is not below {vocab_size}", [known])
    ids, codes = encoding.decode_counts(entries, vocab_size)
    within = np.ones(ids.size, bool)
    within[offsets[:-1]] = False
    record = np.cumsum(~within)
    if method["kind"] == "sampled":
        rising = np.diff(ids, prepend=-1)[within] > 0
        _require(file, "the ids of a record do not ascend", [rising.all()])
        drawn = np.add.reduceat(codes, offsets[:-1])
        right = [(codes > 0).all(), (drawn == method["draws"]).all()]
        _require(file, f"a record does not count {method['draws']} draws", right)
        return
    sorted_ids = np.sort(record * vocab_size + ids)
    _require(file, "a record holds an id twice", [(np.diff(sorted_ids) > 0).all()])
    falling = np.diff(codes, prepend=0)[within] >= 0
    _require(file, "the entries of a record are not sorted, likeliest first", [falling.all()])
    _, logprobs = encoding.decode_logprobs(entries, vocab_size)
    mass = np.add.reduceat(np.exp(logprobs.astype(np.float64)), offsets[:-1])
    _require(
        file,
        f"the probabilities of a record sum to {mass.max(initial=0):.4g}",
        [(mass <= 1 + ABOVE_ROUNDING).all()],
    )


def _require(file: Path, fault: str, right: list[object]) -> None:
    if not all(right):
        raise StoreCorruptError(f"{file}: {fault}. {AGAIN}")
