"""The likeliest tokens with their log-probabilities at T = 1, likeliest first, and the tail that
they leave: int16 [R, temperatures], log-odds."""

from collections.abc import Collection, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from axolotl_distill.config.distill import Support
from axolotl_distill.signal.batch import TAIL, Column
from axolotl_distill.store import encoding
from axolotl_distill.store.payloads.base import (
    Layout,
    RecordBatch,
    Records,
    Several,
    Shape,
    Summary,
    registered,
)
from axolotl_distill.store.payloads.entries import EntriesPayload, starts_of, within_records

# By how much a record's mass, tail and all, may be above one: teachers and servers that round
# give log-probabilities to a few hundredths.
ABOVE = 0.06


class LogProbs(EntriesPayload):
    """An entry's value is a log-probability."""

    columns: ClassVar[tuple[str, ...]] = ("entries", "tail")
    supports: ClassVar[tuple[Support, ...]] = ("tail_bucket", "renormalize")
    temperature_key: ClassVar[str] = "temperatures"

    @property
    def likeliest(self) -> int:
        return self.most_entries

    def serves(self, support: str, temperatures: list[float]) -> list[float] | None:
        return temperatures if support == "tail_bucket" else None

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        tail = ("I16", (shape.records, len(shape.temperatures)))
        return {**super().tensors(shape, present), "tail": tail}

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        super().check_batch(records, shape)
        assert records.tail.dtype == np.int16
        assert records.tail.shape == (len(records), len(shape.temperatures))

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        columns = super().collate(records, temperatures, temperature)
        if temperature in temperatures:
            columns[TAIL] = records.tail[:, list(temperatures).index(temperature)]
        return columns

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        held = 1.0 - np.exp(encoding.decode_tail(records.tail)).mean(0)
        masses = {f"{t:g}": float(mass) for t, mass in zip(temperatures, held, strict=True)}
        return {**super().summary(records, temperatures), "mass held at T": masses}

    def check_entries(self, found: RecordBatch, shape: Shape) -> None:
        ids, codes = encoding.decode_counts(found.entries, shape.vocab_size)
        _, logprobs = encoding.decode_logprobs(found.entries, shape.vocab_size)
        starts, within = starts_of(found.lengths), within_records(found.lengths)
        if (np.diff(codes, prepend=0)[within] < 0).any():
            raise ValueError("the entries of a record are not sorted, likeliest first")
        one_a_record = np.cumsum(~within) * shape.vocab_size + ids
        if (np.diff(np.sort(one_a_record)) == 0).any():
            raise ValueError("a record holds an id twice")
        held = np.add.reduceat(np.exp(logprobs.astype(np.float64)), starts)
        if (held > 1 + ABOVE).any():
            raise ValueError(f"the probabilities of a record sum to {held.max():.4g}")
        tail = found.tail[:, list(shape.temperatures).index(1.0)]
        mass = held + np.exp(encoding.decode_tail(tail))
        # Half a step of every entry, half a step of the tail, and what float32 sums lose.
        below = 0.5 * encoding.LOGPROB_RANGE / encoding.max_code(shape.vocab_size) + 1e-3
        wrong = (mass < 1 - below) | (mass > 1 + ABOVE)
        if wrong.any():
            raise ValueError(
                f"the probabilities of a record and its tail sum to {mass[wrong][0]:.4g}, not 1: "
                "they are not of one distribution"
            )

    def decode(self, records: Records, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        ids, logprobs = encoding.decode_logprobs(records.entries, vocab_size)
        return ids, np.exp(logprobs.astype(np.float64))


@registered
class TopK(LogProbs):
    """The k likeliest tokens; fewer where the teacher gave fewer."""

    kind: Literal["topk"]
    k: Several

    asked_by: ClassVar[dict[str, str]] = {"k": "k"}

    @property
    def most_entries(self) -> int:
        return self.k

    @property
    def stride(self) -> int:
        return self.k


@registered
class Nucleus(LogProbs):
    """The likeliest tokens until they hold p of the mass, at least one, at most max_k."""

    kind: Literal["nucleus"]
    p: Annotated[float, Field(gt=0, le=1)]
    max_k: Several

    asked_by: ClassVar[dict[str, str]] = {"p": "p", "max_k": "max_k"}

    @property
    def most_entries(self) -> int:
        return self.max_k
