"""The payloads of one store, taken together."""

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import ConfigDict, Field, RootModel, model_validator

from axolotl_distill.signal.batch import Column
from axolotl_distill.store.payloads.base import (
    AnyPayload,
    Arrays,
    Distribution,
    Layout,
    Payload,
    RecordBatch,
    Records,
    Shape,
    Summary,
)

# Far more than anybody has of a position; what a damaged manifest names is bounded.
MOST = 16


class Payloads(RootModel[Annotated[list[AnyPayload], Field(min_length=1, max_length=MOST)]]):
    """`payloads` of a manifest. A record has the columns of all of them, and every method does for
    a record what `Payload` says of a part of it. No column belongs to two, and one payload is a
    Distribution."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        names = self.columns
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two of them have a column `{twice[0]}`")
        if not any(isinstance(payload, Distribution) for payload in self.root):
            raise ValueError("none of them says how likely the next token is")
        return self

    @property
    def each(self) -> list[Payload]:
        return self.root

    @property
    def columns(self) -> list[str]:
        return [name for payload in self.root for name in payload.columns]

    @property
    def distribution(self) -> Distribution:
        """The one that says how likely each token is to come next."""
        return next(payload for payload in self.root if isinstance(payload, Distribution))

    @property
    def most_entries(self) -> int:
        return max(payload.most_entries for payload in self.root)

    def without(self, kinds: Collection[str]) -> "Payloads":
        """These, but for some kinds; a distribution stays."""
        kept = [payload for payload in self.root if payload.kind not in kinds]
        assert any(isinstance(payload, Distribution) for payload in kept)
        return self if len(kept) == len(self.root) else Payloads.model_construct(root=kept)

    def check_vocabulary(self, vocab_size: int) -> None:
        for payload in self.root:
            payload.check_vocabulary(vocab_size)

    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        return _merged(payload.tensors(shape, present) for payload in self.root)

    def pack(self, records: RecordBatch, shape: Shape) -> Arrays:
        return _merged(payload.pack(records.only(payload.columns), shape) for payload in self.root)

    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        assert set(records.columns) == set(self.columns), "the payloads' columns, and no others"
        for payload in self.root:
            payload.check_batch(records.only(payload.columns), shape)

    def read(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> Records:
        return Records(_merged(payload.read(arrays, index, shape).columns for payload in self.root))

    def take(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> RecordBatch:
        """What `read` gives, as it went into the shard: nothing filled up."""
        found = self.read(arrays, index, shape)
        fills = _merged(payload.fills for payload in self.root)
        lengths, columns = np.zeros(index.size, np.int64), {}
        for name, column in found.columns.items():
            inside = column != fills[name] if name in fills else None
            columns[name] = column if inside is None else column[inside]
            lengths = lengths if inside is None else inside.sum(1)
        return RecordBatch(columns, lengths)

    def check(self, arrays: Arrays, shape: Shape, most: int | None = None) -> None:
        for payload in self.root:
            payload.check(arrays, shape, most)

    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        return _merged(payload.collate(records, temperatures, temperature) for payload in self.root)

    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        return _merged(payload.summary(records, temperatures) for payload in self.root)

    def join(self, parts: Sequence[tuple[np.ndarray, Records]], count: int) -> Records:
        """`count` records out of parts, each with the places int64 [M] where its own belong."""
        if len(parts) == 1:
            return parts[0][1]
        fills = _merged(payload.fills for payload in self.root)
        columns: Arrays = {}
        for name in parts[0][1].columns:
            found = [part.columns[name] for _, part in parts]
            inner = tuple(map(max, *(column.shape[1:] for column in found)))
            out = np.full((count, *inner), fills.get(name, 0), found[0].dtype)
            for (at, _), column in zip(parts, found, strict=True):
                inside: tuple[Any, ...] = tuple(map(slice, column.shape[1:]))
                out[(at, *inside)] = column
            columns[name] = out
        return Records(columns)


def _merged(parts: Iterator[dict[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for part in parts:
        assert not found.keys() & part.keys(), "two payloads have something of one name"
        found |= part
    return found
