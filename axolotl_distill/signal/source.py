"""Where a batch's signal comes from: chosen here, and, for a live teacher with another tokenizer,
in host/crossing.py.

A source makes the signal of the positions that predict, out of a batch: from the records of a store
that the collator has looked up, or from a teacher that answers while the student trains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.config.distill import DistillArgs, Support
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.signal.batch import ENTRIES, ENTROPY, TAIL
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.signal.live import live_signal
from axolotl_distill.signal.signal import Signal
from axolotl_distill.store import TeacherStore
from axolotl_distill.teachers.context import NO_CONTEXT, Context
from axolotl_distill.teachers.tokenizer import SharedVocabulary


class SignalSource(Protocol):
    """support: what a distribution of few tokens stands for, as the loss is to take it."""

    @property
    def support(self) -> Support: ...

    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        """What the teacher says of M positions of a batch.

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
    """

    vocab_size: int
    support: Support
    temperature: float

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
        return Signal(
            decode_entries(
                columns[ENTRIES.name].flatten(0, 1)[rows],
                vocab_size=self.vocab_size,
                sampled=self.support == "sampled",
                temperature=self.temperature,
                **found,
            )
        )


def signal_source(
    args: DistillArgs,
    stores: Sequence[TeacherStore],
    student: PreTrainedModel,
    vocabulary: SharedVocabulary | None,
    layers: tuple[int, ...] = (),
    context: Context = NO_CONTEXT,
) -> SignalSource | None:
    """The source for a `distill:` block; None where there is text alone.

    stores      of the run, which `stores_findings` found to be alike
    student     who may be the teacher, too
    vocabulary  that a teacher who answers while the student trains shares with it
    layers      of such a teacher, whose outputs are wanted
    context     what such a teacher reads before every document

    Raises what loading such a teacher does.
    """
    if isinstance(args.teacher, TeacherArgs):
        assert vocabulary is not None
        return live_signal(args, args.teacher, vocabulary, student, layers, context)
    if not stores:
        return None
    first = stores[0]
    own = args.temperature / first.manifest.tempered
    return StoredSignal(first.manifest.vocab_size, resolve_support(first, args), own)


def resolve_support(store: TeacherStore, args: DistillArgs) -> Support:
    """The support asked for, or the one that the store's records are made for."""
    return args.support or store.manifest.payloads.distribution.supports[0]
