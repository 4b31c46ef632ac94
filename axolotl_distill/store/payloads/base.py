"""What every payload can do, and the arrays in which records travel."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from axolotl_distill.config.distill import Support
from axolotl_distill.signal.batch import Column

Several = Annotated[int, Field(ge=1, lt=1 << 20)]
Temperature = Annotated[float, Field(gt=0)]
Arrays = dict[str, np.ndarray]
Summary = dict[str, dict[str, float]]
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""name -> (dtype as safetensors writes it, shape) of a shard's tensors"""


@dataclass(frozen=True)
class Columns:
    """Arrays by name. Which there are, and their types, the payload says."""

    columns: Arrays

    @property
    def entries(self) -> np.ndarray:
        return self.columns["entries"]

    @property
    def tail(self) -> np.ndarray:
        return self.columns["tail"]

    @property
    def entropy(self) -> np.ndarray | None:
        return self.columns.get("entropy")


@dataclass(frozen=True)
class RecordBatch(Columns):
    """Records on their way into a store, one after another: of what has several values a record,
    all of them, [E]; of anything else [R, …]. lengths: int64 [R], how many of the E are each's; 0
    where nothing has."""

    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def only(self, names: Collection[str]) -> "RecordBatch":
        """The same records, of these columns alone."""
        return RecordBatch({name: self.columns[name] for name in names}, self.lengths)


@dataclass(frozen=True)
class Records(Columns):
    """Records out of a store, M of them: every column is [M, …], and [M, K] where a record has
    several values, filled up where it has fewer."""


@dataclass(frozen=True)
class Shape:
    """What a manifest says of the records in one file."""

    vocab_size: int
    temperatures: Sequence[float]
    records: int
    entries: int


class Payload(BaseModel, ABC):
    """What a store holds of a position: one kind of it. Its fields are its entry of `payloads` in
    the manifest: how the records were made. A store may have several (`Payloads`); each is given
    its own columns, and takes its own of a file's arrays.

    An array that is given to it was mapped from a file whose header fits `tensors`, and what is in
    it is not to be trusted. What is wrong is a ValueError; the caller names the file.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    kind: str

    columns: ClassVar[tuple[str, ...]]
    """The columns of its records"""
    fills: ClassVar[dict[str, int]] = {}
    """column -> what fills a record that is shorter than others"""

    @property
    def most_entries(self) -> int:
        """The most entries that a record can have; 0: it has none, nor needs any."""
        return 0

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ValueError where records over so many ids cannot be written."""
        return

    @abstractmethod
    def tensors(self, shape: Shape, present: Collection[str]) -> Layout:
        """The tensors of a shard. `present`: those in its file, for some may be left out where
        they say nothing. Raises ValueError where one may not."""

    @abstractmethod
    def pack(self, records: RecordBatch, shape: Shape) -> Arrays:
        """The tensors of a shard."""

    @abstractmethod
    def check_batch(self, records: RecordBatch, shape: Shape) -> None:
        """Asserts that records which are about to be stored have the columns, types and lengths
        that they must."""

    @abstractmethod
    def read(self, arrays: Arrays, index: np.ndarray, shape: Shape) -> Records:
        """Records int64 [M] of a shard. Nothing larger than M of the longest records is allocated.

        Raises ValueError for one that is no record.
        """

    @abstractmethod
    def check(self, arrays: Arrays, shape: Shape, most: int | None = None) -> None:
        """Raises ValueError unless the records are what they say: in bounds, in order,
        distributions. Looks at `most` evenly spaced ones, or at all."""

    @abstractmethod
    def collate(
        self, records: Records, temperatures: Sequence[float], temperature: float
    ) -> dict[Column, np.ndarray]:
        """What a batch has of M records, [M, …] each, in a run at `temperature`, of a store with
        the tail at `temperatures`. Which columns does not depend on the records, nor on M."""

    @abstractmethod
    def summary(self, records: Records, temperatures: Sequence[float]) -> Summary:
        """For people: means and the like over some records, by name."""


class Distribution(Payload):
    """A payload that says how likely each token is to come next; every store has one."""

    supports: ClassVar[tuple[Support, ...]]
    """What its records may mean in a loss (`distill.support`); the first is the default"""
    divergences: ClassVar[tuple[str, ...] | None] = None
    """Those that can be had from it; None: all"""
    asked_by: ClassVar[dict[str, str]]
    """field -> the key of `distill.capture` that fills it"""
    temperature_key: ClassVar[str]
    """The key of `distill.capture` that decides which temperatures it serves"""

    @property
    def likeliest(self) -> int | None:
        """How many of a teacher's likeliest tokens are enough to make a record of; None: any may be
        needed."""
        return None

    @abstractmethod
    def serves(self, support: str, temperatures: list[float]) -> list[float] | None:
        """The temperatures that a loss can have, of a store with the tail at `temperatures`. None:
        any."""

    @abstractmethod
    def decode(self, records: Records, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
        """For people: ids int64 and weights float64, [M, K] each, -1 and 0 where a record is
        shorter. A weight is a probability at T = 1, or a number of draws."""


P = TypeVar("P", bound=Payload)

KINDS: dict[str, type[Payload]] = {}
"""Every payload that a manifest may name, by its kind; full when `store.payloads` is imported."""


def registered(payload: type[P]) -> type[P]:
    """Puts a payload into KINDS, under the one value that its `kind` may have."""
    (kind,) = get_args(payload.model_fields["kind"].annotation)
    assert kind not in KINDS, kind
    KINDS[kind] = payload
    return payload


def _of_its_kind(value: object) -> object:
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"`kind` is {str(kind)[:60]!r}, not one of {', '.join(KINDS)}")
    return KINDS[kind].model_validate(value)


AnyPayload = Annotated[SerializeAsAny[Payload], BeforeValidator(_of_its_kind)]
"""A payload of any kind, out of a manifest"""


def join_batches(parts: Sequence[RecordBatch]) -> RecordBatch:
    """The records of all parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns
    }
    return RecordBatch(columns, np.concatenate([part.lengths for part in parts]))
