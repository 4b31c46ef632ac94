"""What records of entries have in common: ids with a value each, and the tail that they leave.

entries  uint32 [E]               of all records, one after another
offsets  uint32 [R + 1]           where each begins; may be left out where all have `stride`
tail     int16 [R, temperatures]  log-odds of what the entries leave
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import ClassVar

import numpy as np

from axolotl_distill.signal.batch import ENTRIES, TAIL, Column
from axolotl_distill.store import encoding
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

    columns: ClassVar[tuple[str, ...]] = ("entries", "tail")
    fills: ClassVar[dict[str, int]] = {"entries": int(encoding.PAD)}

    @property
    def stride(self) -> int | None:
        """How many entries every record has, where offsets may be left out for it."""
        return None

    @abstractmethod
    def check_entries(self, found: RecordBatch, shape: Shape) -> None:
        """Some records, none empty, each entry an id and a value. Raises ValueError."""

    def bytes_a_record(self, temperatures: int) -> int:
        offset = 0 if self.stride else 4
        return 4 * self.most_entries + 2 * temperatures + offset

    def check_vocabulary(self, vocab_size: int) -> None:
        encoding.id_bits(vocab_size)

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        layout: Layout = {
            "entries": ("U32", (shape.entries,)),
            "tail": ("I16", (shape.records, len(shape.temperatures))),
        }
        if "offsets" in present or self.stride is None:
            layout["offsets"] = ("U32", (shape.records + 1,))
        elif shape.entries != shape.records * self.stride:
            raise ValueError(
                f"it has no offsets, and {shape.entries} entries in {shape.records} records of "
                f"{self.stride}"
            )
        return layout

    def pack(self, records: RecordBatch) -> Arrays:
        arrays = dict(records.columns)
        if self.stride is None or np.any(records.lengths != self.stride):
            offsets = np.concatenate([[0], np.cumsum(records.lengths)])
            assert offsets[-1] < 1 << 32, "the writer bounds a shard"
            arrays["offsets"] = offsets.astype(np.uint32)
        return arrays

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        assert set(records.columns) == set(self.columns), "a payload's columns, and no others"
        assert records.entries.dtype == np.uint32 and records.tail.dtype == np.int16
        assert len(records.entries) == int(records.lengths.sum())
        assert records.tail.shape == (len(records), len(shape.temperatures))
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
        offsets = arrays.get("offsets")
        if offsets is not None:
            rising = bool((offsets[1:] > offsets[:-1]).all())
            if not (rising and offsets[0] == 0 and offsets[-1] == shape.entries):
                raise ValueError("its offsets do not rise from 0 to its entries")
        for index in _spread(shape.records, most, max(1, AT_ONCE // self.most_entries)):
            self.check_entries(self._take(arrays, index, shape), shape)

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        columns = {ENTRIES: records.entries.view(np.int32)}
        if temperature in temperatures:
            columns[TAIL] = records.tail[:, list(temperatures).index(temperature)]
        return columns

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        lengths = (records.entries != encoding.PAD).sum(1)
        held = 1.0 - np.exp(encoding.decode_tail(records.tail)).mean(0)
        return {
            "entries a record": {
                "min": float(lengths.min()),
                "mean": float(lengths.mean()),
                "max": float(lengths.max()),
            },
            "mass held at T": {
                f"{temperature:g}": float(mass)
                for temperature, mass in zip(temperatures, held, strict=True)
            },
        }

    def _take(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> RecordBatch:
        """Records [M] one after another, bounded before anything is allocated for them."""
        columns = {name: arrays[name][index] for name in self.columns if name != "entries"}
        if "offsets" in arrays:
            start = arrays["offsets"][index].astype(np.int64)
            lengths = arrays["offsets"][index + 1].astype(np.int64) - start
        else:
            assert self.stride is not None, "tensors() saw to that"
            start = index * self.stride
            lengths = np.full(index.size, self.stride, np.int64)
        if int(lengths.min(initial=1)) < 1 or int((start + lengths).max(initial=0)) > shape.entries:
            raise ValueError("its offsets are damaged")
        if int(lengths.max(initial=1)) > self.most_entries:
            raise ValueError(
                f"its offsets are damaged: a record has more than {self.most_entries} entries"
            )
        stops = np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(start - (stops - lengths), lengths)
        entries = arrays["entries"][places]
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


def _spread(count: int, most: int | None, at_once: int) -> Iterator[np.ndarray]:
    """All of range(count), or `most` evenly spaced ones, in parts of `at_once`."""
    step = 1 if most is None else max(1, count // most)
    for first in range(0, count, step * at_once):
        yield np.arange(first, min(count, first + step * at_once), step, dtype=np.int64)
