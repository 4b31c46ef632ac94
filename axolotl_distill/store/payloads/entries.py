"""What records of entries have in common: ids with a value each.

entries  uint32 [E]  of all records, one after another, or packed as the payload says
lengths, starts      how many are each record's (ragged.py); absent where all have `stride`
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import numpy as np

from axolotl_distill.signal.batch import ENTRIES, Column
from axolotl_distill.store import encoding
from axolotl_distill.store.payloads import ragged
from axolotl_distill.store.payloads.base import (
    Arrays,
    Distribution,
    Layout,
    RecordBatch,
    Records,
    Shape,
    Summary,
)

# Entries looked at together, so that memory does not grow with a shard.
AT_ONCE = 4 << 20


class EntriesPayload(Distribution):
    """Records whose entries are ids with a value."""

    columns: ClassVar[tuple[str, ...]] = ("entries",)
    fills: ClassVar[dict[str, int]] = {"entries": int(encoding.PAD)}

    @property
    def stride(self) -> int | None:
        """How many entries every record has, where lengths may be left out for it."""
        return None

    @abstractmethod
    def check_entries(self, found: RecordBatch, shape: Shape) -> None:
        """Some records, none empty, each entry an id and a value. Raises ValueError."""

    def entries_layout(self, shape: Shape) -> tuple[str, tuple[int, ...]]:
        """(dtype, shape) of the entries on disk."""
        return "U32", (shape.entries,)

    def packed(self, entries: np.ndarray, shape: Shape) -> np.ndarray:
        """Entries uint32 [E] as they lie on disk."""
        return entries

    def unpacked(self, entries: np.ndarray, shape: Shape) -> np.ndarray:
        """Some of the disk's as uint32; not to be trusted."""
        return entries

    def check_vocabulary(self, vocab_size: int) -> None:
        encoding.id_bits(vocab_size)

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        layout: Layout = {"entries": self.entries_layout(shape)}
        if "lengths" in present or self.stride is None:
            layout |= ragged.layout(shape.records, self.most_entries)
        elif shape.entries != shape.records * self.stride:
            raise ValueError(
                f"it has no lengths, and {shape.entries} entries in {shape.records} records of "
                f"{self.stride}"
            )
        return layout

    def pack(self, records: RecordBatch, shape: Shape) -> Arrays:
        arrays = {**records.columns, "entries": self.packed(records.entries, shape)}
        if self.stride is None or np.any(records.lengths != self.stride):
            arrays |= ragged.pack(records.lengths, self.most_entries)
        return arrays

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        assert set(records.columns) == set(self.columns), "a payload's columns, and no others"
        assert records.entries.dtype == np.uint32
        assert len(records.entries) == int(records.lengths.sum())
        assert np.all(records.lengths <= self.most_entries)
        assert encoding.are_entries(records.entries, shape.vocab_size), "see store.encoding"

    def read(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> Records:
        found = self._take(arrays, index, shape)
        column = np.arange(int(found.lengths.max(initial=1)))
        inside = column < found.lengths[:, None]
        entries = np.full(inside.shape, encoding.PAD, dtype=np.uint32)
        entries[inside] = found.entries
        return Records({**found.columns, "entries": entries})

    def check(self, arrays: Arrays, shape: Shape, most: int | None = None) -> None:
        if "lengths" in arrays:
            ragged.check(arrays, shape.entries)
        for index in spread(shape.records, most, max(1, AT_ONCE // self.most_entries)):
            self.check_entries(self._take(arrays, index, shape), shape)

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        return {ENTRIES: records.entries.view(np.int32)}

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        lengths = (records.entries != encoding.PAD).sum(1)
        return {
            "entries a record": {
                "min": float(lengths.min()),
                "mean": float(lengths.mean()),
                "max": float(lengths.max()),
            }
        }

    def _take(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> RecordBatch:
        """Records [M] one after another, bounded before anything is allocated for them."""
        columns = {name: arrays[name][index] for name in self.columns if name != "entries"}
        if "lengths" in arrays:
            start, lengths = ragged.spans(arrays, index)
        else:
            assert self.stride is not None, "tensors() saw to that"
            start = index * self.stride
            lengths = np.full(index.size, self.stride, np.int64)
        if int(lengths.min(initial=1)) < 1 or int((start + lengths).max(initial=0)) > shape.entries:
            raise ValueError("its lengths are damaged")
        if int(lengths.max(initial=1)) > self.most_entries:
            raise ValueError(
                f"its lengths are damaged: a record has more than {self.most_entries} entries"
            )
        stops = np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(start - (stops - lengths), lengths)
        entries = self.unpacked(arrays["entries"][places], shape)
        if not encoding.are_entries(entries, shape.vocab_size):
            raise ValueError(
                "its entries are damaged: one is padding, or its id is not below "
                f"{shape.vocab_size}"
            )
        return RecordBatch({"entries": entries, **columns}, lengths)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """int64 [R], where each of R records begins that lie one after another."""
    return np.cumsum(lengths) - lengths


def within_records(lengths: np.ndarray) -> np.ndarray:
    """bool [E], of entries one record after another: whether one follows another of its record."""
    within = np.ones(int(lengths.sum()), bool)
    within[starts_of(lengths)] = False
    return within


def spread(count: int, most: int | None, at_once: int) -> Iterator[np.ndarray]:
    """All of range(count), or `most` evenly spaced ones, in parts of `at_once`."""
    step = 1 if most is None else max(1, count // most)
    for first in range(0, count, step * at_once):
        yield np.arange(first, min(count, first + step * at_once), step, dtype=np.int64)
