"""Where a batch's signal comes from: chosen here, and nowhere else.

A source makes the signal of the positions that predict, out of a batch's columns. Today it is the
store that the collator has looked up; a teacher that answers while the student trains is another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from axolotl_distill.config.distill import DistillArgs, Support
from axolotl_distill.signal.batch import ENTRIES, ENTROPY, TAIL
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.signal.signal import Signal
from axolotl_distill.store import TeacherStore


class SignalSource(Protocol):
    """support: what a distribution of few tokens stands for, as the loss is to take it."""

    @property
    def support(self) -> Support: ...

    def signal(self, columns: Mapping[str, Tensor], rows: Tensor) -> Signal:
        """What the teacher says of M positions of a batch.

        columns  those of signal/batch.py that the batch has, by name, [B, S] or [B, S, K]
        rows     int64 [M], positions as numbers in [0, B * S), any as often as wanted
        """
        ...


@dataclass(frozen=True)
class StoredSignal:
    """The records that the collator put into the batch.

    vocab_size   of their store: how an entry's bits are split
    support      "sampled" for draws
    temperature  of the loss, at which the tail was looked up
    """

    vocab_size: int
    support: Support
    temperature: float

    def signal(self, columns: Mapping[str, Tensor], rows: Tensor) -> Signal:
        """See SignalSource; at `temperature`."""
        assert ENTRIES.name in columns, "every batch of a run with a store has its columns"
        found = {
            name: columns[column.name].flatten()[rows]
            for name, column in (("tail", TAIL), ("entropy", ENTROPY))
            if column.name in columns
        }
        return Signal(
            decode_entries(
                columns[ENTRIES.name].flatten(0, 1)[rows],
                vocab_size=self.vocab_size,
                sampled=self.support == "sampled",
                temperature=self.temperature,
                **found,
            )
        )


def signal_source(args: DistillArgs, stores: Sequence[TeacherStore]) -> SignalSource | None:
    """The source for a `distill:` block and the stores of its run, which `stores_findings` found
    to be alike; None where there is text alone."""
    if not stores:
        return None
    first = stores[0]
    return StoredSignal(first.manifest.vocab_size, resolve_support(first, args), args.temperature)


def resolve_support(store: TeacherStore, args: DistillArgs) -> Support:
    """The support asked for, or the one that the store's records are made for."""
    return args.support or store.manifest.payloads.distribution.supports[0]
