"""A few tokens that stand for the whole distribution, each with its share of it in parts, in the
order of their ids; and the entropy of the distribution, int16 [R]."""

import math
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import numpy as np

from axolotl_distill.config.distill import Support
from axolotl_distill.signal.batch import ENTROPY, Column
from axolotl_distill.store import encoding
from axolotl_distill.store.payloads.base import (
    Layout,
    RecordBatch,
    Records,
    Several,
    Shape,
    Summary,
    Temperature,
    registered,
)
from axolotl_distill.store.payloads.entries import EntriesPayload, starts_of, within_records


@registered
class Sampled(EntriesPayload):
    """Shares at one temperature: `capture/draws.py` says how they are drawn. An entry's value is a
    count of `encoding.parts`. There is no tail: what was not drawn is stood for by what was."""

    kind: Literal["sampled"]
    draws: Several
    temperature: Temperature
    seed: int

    columns: ClassVar[tuple[str, ...]] = ("entries", "entropy")
    supports: ClassVar[tuple[Support, ...]] = ("sampled",)
    divergences: ClassVar[tuple[str, ...] | None] = ("forward_kl",)
    asked_by: ClassVar[dict[str, str]] = {
        "draws": "draws",
        "temperature": "sampling_temperature",
        "seed": "seed",
    }
    temperature_key: ClassVar[str] = "sampling_temperature"

    @property
    def most_entries(self) -> int:
        return self.draws

    def serves(self, support: str, temperatures: list[float]) -> list[float] | None:
        return [self.temperature]

    def check_vocabulary(self, vocab_size: int) -> None:
        super().check_vocabulary(vocab_size)
        if not encoding.parts(vocab_size, self.draws):
            raise ValueError(f"`draws` is {self.draws}, which no entry can count")

    def entries_layout(self, shape: Shape) -> tuple[str, tuple[int, ...]]:
        if self._is_packed(shape):
            return "U8", (shape.entries, 3)
        return super().entries_layout(shape)

    def packed(self, entries: np.ndarray, shape: Shape) -> np.ndarray:
        return (
            encoding.pack_entries(entries, shape.vocab_size) if self._is_packed(shape) else entries
        )

    def unpacked(self, entries: np.ndarray, shape: Shape) -> np.ndarray:
        if self._is_packed(shape):
            return encoding.unpack_entries(entries, shape.vocab_size)
        return entries

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        return {**super().tensors(shape, present), "entropy": ("I16", (shape.records,))}

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        super().check_batch(records, shape)
        assert records.entropy is not None and records.entropy.shape == (len(records),)

    def check_entries(self, found: RecordBatch, shape: Shape) -> None:
        ids, counts = encoding.decode_counts(found.entries, shape.vocab_size)
        if (np.diff(ids, prepend=-1)[within_records(found.lengths)] <= 0).any():
            raise ValueError("the ids of a record do not ascend")
        parts = encoding.parts(shape.vocab_size, self.draws)
        total = np.add.reduceat(counts, starts_of(found.lengths))
        if (counts < 1).any() or (total != parts).any():
            raise ValueError(f"the counts of a record do not sum to {parts}")
        assert found.entropy is not None
        most = encoding.encode_entropy(np.asarray(math.log(shape.vocab_size)))
        if (found.entropy < 0).any() or (found.entropy > most + 1).any():
            raise ValueError(
                f"an entropy is not between 0 and that of {shape.vocab_size} equal tokens"
            )

    def decode(self, records: Records, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        ids, counts = encoding.decode_counts(records.entries, vocab_size)
        return ids, counts / encoding.parts(vocab_size, self.draws)

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        assert records.entropy is not None
        return {**super().collate(records, temperatures, temperature), ENTROPY: records.entropy}

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        assert records.entropy is not None
        nats = encoding.decode_entropy(records.entropy)
        return {
            **super().summary(records, temperatures),
            "entropy, nats": {"mean": float(nats.mean()), "max": float(nats.max())},
        }

    def _is_packed(self, shape: Shape) -> bool:
        return encoding.bytes_an_entry(shape.vocab_size, self.draws) == 3
