"""Tokens drawn from the teacher, with how often each came, in the order of their ids; and the
entropy of the distribution that they were drawn from, int16 [R]."""

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
    Temperature,
    registered,
)
from axolotl_distill.store.payloads.entries import EntriesPayload, starts_of, within_records


@registered
class Sampled(EntriesPayload):
    """`draws` independent draws at one temperature. An entry's value is a count."""

    kind: Literal["sampled"]
    draws: Several
    temperature: Temperature
    seed: int

    columns: ClassVar[tuple[str, ...]] = ("entries", "tail", "entropy")
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

    def bytes_a_record(self, temperatures: int) -> int:
        return super().bytes_a_record(temperatures) + 2

    def serves(self, support: str, temperatures: list[float]) -> list[float] | None:
        return [self.temperature]

    def check_vocabulary(self, vocab_size: int) -> None:
        super().check_vocabulary(vocab_size)
        if self.draws > encoding.max_code(vocab_size):
            raise ValueError(f"`method.draws` is {self.draws}, which no entry can count")

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        return {**super().tensors(shape, present), "entropy": ("I16", (shape.records,))}

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        super().check_batch(records, shape)
        assert records.entropy is not None and records.entropy.shape == (len(records),)

    def check_entries(self, found: RecordBatch, shape: Shape) -> None:
        ids, counts = encoding.decode_counts(found.entries, shape.vocab_size)
        if (np.diff(ids, prepend=-1)[within_records(found.lengths)] <= 0).any():
            raise ValueError("the ids of a record do not ascend")
        drawn = np.add.reduceat(counts, starts_of(found.lengths))
        if (counts < 1).any() or (drawn != self.draws).any():
            raise ValueError(f"a record does not count {self.draws} draws")
        assert found.entropy is not None
        most = encoding.encode_entropy(np.asarray(math.log(shape.vocab_size)))
        if (found.entropy < 0).any() or (found.entropy > most + 1).any():
            raise ValueError(
                f"an entropy is not between 0 and that of {shape.vocab_size} equal tokens"
            )

    def decode(self, records: Records, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        ids, counts = encoding.decode_counts(records.entries, vocab_size)
        return ids, counts.astype(np.float64)

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        assert records.entropy is not None
        return {**super().collate(records, temperatures, temperature), ENTROPY: records.entropy}
