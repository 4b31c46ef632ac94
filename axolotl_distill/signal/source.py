"""Where a batch's signal comes from: chosen here, and, for a live teacher with another tokenizer,
in host/crossing.py.

A source makes the signal of the positions that predict, out of a batch: from the records of a store
that the collator has looked up, or from a teacher that answers while the student trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.config.choice import ChoiceArgs
from axolotl_distill.config.distill import DistillArgs, Support
from axolotl_distill.signal.batch import ENTRIES, ENTROPY, HIDDEN, HIDDEN_SCALE, TAIL
from axolotl_distill.signal.chosen import ChosenSignal
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.signal.live import LiveSignal, Reading, live_signal
from axolotl_distill.signal.signal import Said, Signal
from axolotl_distill.store import TeacherStore
from axolotl_distill.store.payloads.hidden import hidden_of


class SignalSource(Protocol):
    """support: what a distribution of few tokens stands for, as the loss is to take it."""

    @property
    def support(self) -> Support: ...

    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Said:
        """What the teacher, or several, say of M positions of a batch.

        columns  those of signal/batch.py that the batch has, by name, [B, S] or [B, S, K]
        rows     int64 [M], positions as numbers in [0, B * S), any as often as wanted; the first
                 may be one that predicts nothing, and what is said of it counts for nothing
        inputs   what the student reads, by the names of its forward: input_ids [B, S], …
        """
        ...


@dataclass(frozen=True)
class StoredSignal:
    """The records that the collator put into the batch.

    vocab_size   of their store: how an entry's bits are split
    support      "sampled" for draws
    temperature  of the loss, at which the tail was looked up, as their store has it
    layers       which of the stored layers are wanted, by their places in a record
    """

    vocab_size: int
    support: Support
    temperature: float
    layers: tuple[int, ...] = ()

    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        """See SignalSource; at `temperature`."""
        assert ENTRIES.name in columns, "every batch of a run with a store has its columns"
        found = {
            name: columns[column.name].flatten()[rows]
            for name, column in (("tail", TAIL), ("entropy", ENTROPY))
            if column.name in columns
        }
        said = decode_entries(
            columns[ENTRIES.name].flatten(0, 1)[rows],
            vocab_size=self.vocab_size,
            sampled=self.support == "sampled",
            temperature=self.temperature,
            **found,
        )
        if not self.layers:
            return Signal(said)
        stored, scale = (
            columns[name].flatten(0, 1)[rows][:, self.layers].float()
            for name in (HIDDEN.name, HIDDEN_SCALE.name)
        )
        return Signal(said, stored * scale[..., None], known=said.ids[:, 0] >= 0)


def signal_source(
    args: DistillArgs,
    stores: Sequence[TeacherStore],
    student: PreTrainedModel,
    readings: Mapping[str, Reading] | None = None,
    layers: tuple[int, ...] = (),
) -> SignalSource | None:
    """The source for a `distill:` block; None where there is text alone.

    stores    of the run, which `stores_findings` found to be alike
    student   who may be the teacher, too
    readings  of the teachers that answer while the student trains, by their keys (`args.teachers`)
    layers    of the teacher, whose outputs are wanted; those that it stored, of a store

    Raises what loading such a teacher does.
    """
    if args.teachers:
        assert readings is not None
        return _live(args, readings, student, layers)
    if not stores:
        return None
    first = stores[0]
    own = args.temperature / first.manifest.tempered
    places: tuple[int, ...] = ()
    if layers:
        there = hidden_of(first.manifest.payloads)
        assert there is not None, "host/hidden.py saw to that"
        places = tuple(map(there.layers.index, layers))
    return StoredSignal(first.manifest.vocab_size, resolve_support(first, args), own, places)


def _live(
    args: DistillArgs,
    readings: Mapping[str, Reading],
    student: PreTrainedModel,
    layers: tuple[int, ...],
) -> LiveSignal | ChosenSignal:
    """One teacher, or several; what two choices have in common is loaded once."""
    made: dict[str, LiveSignal] = {}
    sources = []
    for key, teacher in args.teachers.items():
        written = teacher.model_dump_json()
        if written not in made:
            made[written] = live_signal(args, teacher, readings[key], student, layers)
        sources.append(replace(made[written]))
    if not isinstance(args.teacher, ChoiceArgs):
        return sources[0]
    return ChosenSignal(dict(zip(args.teacher.names, sources, strict=True)))


def resolve_support(store: TeacherStore, args: DistillArgs) -> Support:
    """The support asked for, or the one that the store's records are made for."""
    return args.support or store.manifest.payloads.distribution.supports[0]
