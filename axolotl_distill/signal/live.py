"""A teacher that answers while the student trains.

A batch is taken apart into its documents, so that the teacher reads each by itself, whatever packed
or padded the batch and whatever attention the teacher computes; what it says is put back at the
positions that predict.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from distill_kernels import DenseLogits, DenseTeacher, SparseTeacher
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.config.distill import DistillArgs, Support
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.signal.batch import IGNORE, TARGETS
from axolotl_distill.signal.documents import contexts, documents
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.teachers.average import Average
from axolotl_distill.teachers.base import Teacher
from axolotl_distill.teachers.context import NO_CONTEXT, Context
from axolotl_distill.teachers.hf import HFTeacher, ModelTeacher
from axolotl_distill.teachers.itself import SelfTeacher
from axolotl_distill.teachers.load import beside
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.sharded import level
from axolotl_distill.teachers.tokenizer import SharedVocabulary


@dataclass(frozen=True)
class Reading:
    """What is known of a live teacher before it is loaded: the vocabulary that it shares with the
    student, and what it reads before every document (`LiveSignal`)."""

    vocabulary: SharedVocabulary
    context: Context = NO_CONTEXT
    by_row: bool = False


UNSEEN = 1e-6
"""Least mass of a tail that a server did not show: its log-probabilities sum to 1 but for
rounding."""


@dataclass
class LiveSignal:
    """Asks a teacher about every batch.

    name         of the teacher, for messages
    vocabulary   that it shares with the student
    want         what it is asked for
    support      see SignalSource
    temperature  of the loss; in units of its own, of a server that serves a tempered model
    batched      the teacher takes all rows of a call as one batch of tensors: a call has no more
                 tokens, padding included, than the student's own batch, or one document
    together     a call of the teacher is one of all processes: each makes as many
    context      what the teacher reads before every document
    by_row       it is what each document's row brings, where `context` would have it
    heard        is told what the teacher says of some positions of a text: its tokens up to the
                 last that is learnt, which of the positions that predict, and the distribution
    seconds      that all calls took so far
    """

    teacher: Teacher
    name: str
    vocabulary: SharedVocabulary
    want: Want
    support: Support
    temperature: float
    batched: bool
    together: bool = False
    context: Context = NO_CONTEXT
    by_row: bool = False
    heard: Callable[[Sequence[int], slice, Distribution], None] | None = None
    seconds: float = 0.0

    @torch.compiler.disable
    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        """See SignalSource. The device is waited for before and after.

        Raises DistillError where the teacher cannot read the text, or does not answer.
        """
        began = time.perf_counter()
        found = self._signal(columns, rows, inputs)
        if rows.device.type != "cpu":
            torch.accelerator.synchronize(rows.device)
        self.seconds += time.perf_counter() - began
        return found

    def _signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        ids = inputs["input_ids"].cpu().numpy().reshape(-1)
        learnt = columns[TARGETS.name].cpu().numpy().reshape(-1) != IGNORE
        texts, positions, shown = {}, {}, {}
        of_row = contexts(columns) if self.by_row else None
        for document in documents(inputs):
            found = np.flatnonzero(learnt[document])
            if found.size:
                # What comes after the last token that is learnt has no bearing on it.
                stop = document.start + int(found[-1]) + 2
                text = ids[document.start : stop]
                self.vocabulary.check_ids(text, self.name)
                texts[document.start], positions[document.start] = text.tolist(), found
                shown[document.start] = self.context
                if of_row is not None:
                    own = tuple(of_row(document))
                    shown[document.start] = replace(self.context, ids=own)
        parts: list[tuple[np.ndarray, Signal]] = []
        sizes = {start: len(text) + len(shown[start]) for start, text in texts.items()}
        groups: Iterable[list[int] | None] = self._groups(sizes, ids.size)
        if self.together:
            groups = level(list(groups), rows.device)
        try:
            for group in groups:
                if group is None:
                    self._ask_nothing()
                    continue
                graded = self.teacher.grade(
                    {start: shown[start].before(texts[start]) for start in group},
                    {start: shown[start].at(positions[start]) for start in group},
                    self.want,
                )
                for start, part, signal in graded:
                    parts.append((start + positions[start][part], signal))
                    if self.heard is not None:
                        self.heard(texts[start], part, signal.distribution)
        except ServerError as error:
            raise type(error)(
                "The teacher does not answer, and the training ends here; it goes on from its last "
                f"checkpoint with `resume_from_checkpoint`. {error}"
            ) from error
        return self._put_back(parts, rows, ids.size)

    def _groups(self, sizes: Mapping[int, int], budget: int) -> Iterator[list[int]]:
        """The documents of each call, longest first; sizes: the tokens that are read of each."""
        if not self.batched:
            if sizes:
                yield list(sizes)
            return
        group: list[int] = []
        for start in sorted(sizes, key=lambda start: -sizes[start]):
            longest = sizes[group[0]] if group else 0
            if group and longest * (len(group) + 1) > budget:
                yield group
                group = []
            group.append(start)
        if group:
            yield group

    def _ask_nothing(self) -> None:
        for _ in self.teacher.grade({0: [0]}, {0: np.zeros(1, dtype=np.int64)}, self.want):
            pass

    def _put_back(
        self, parts: Sequence[tuple[np.ndarray, Signal]], rows: Tensor, size: int
    ) -> Signal:
        """One signal of M rows, on their device. A row of which nothing was said, which is
        one that predicts nothing, has another's."""
        device = rows.device
        if not parts:
            ids = torch.full((rows.numel(), 1), -1, device=device)
            nothing = torch.full(ids.shape, -torch.inf, device=device)
            return Signal(SparseTeacher(ids, nothing, nothing[:, 0]))
        place = torch.zeros(size, dtype=torch.int64)
        place[torch.from_numpy(np.concatenate([at for at, _ in parts]))] = torch.arange(
            sum(at.size for at, _ in parts)
        )
        at = place.to(device)[rows]
        distribution = self._joined([signal.distribution for _, signal in parts], at)
        found = [signal.layers.to(device) for _, signal in parts if signal.layers is not None]
        return Signal(distribution, torch.cat(found)[at] if found else None)

    def _joined(self, parts: Sequence[Distribution], at: Tensor) -> Distribution:
        """What was said of rows int64 [M], as numbers in all the parts, on their device."""
        device, first = at.device, parts[0]
        if isinstance(first, DenseTeacher):
            hidden = torch.cat([_to(said, "hidden", device) for said in parts])[at]
            return replace(self._here(first, device), hidden=hidden)
        if isinstance(first, DenseLogits):
            return DenseLogits(torch.cat([_to(said, "logits", device) for said in parts])[at])
        return self._with_tail(
            torch.cat([_to(said, "ids", device) for said in parts])[at],
            torch.cat([_to(said, "logprobs", device) for said in parts])[at],
        )

    def _here(self, teacher: DenseTeacher, device: torch.device) -> DenseTeacher:
        """The teacher's head on the student's device; copied there once, if it lies elsewhere."""
        if teacher.weight.device == device:
            return teacher
        if self._copy is None:
            bias = None if teacher.bias is None else teacher.bias.to(device)
            self._copy = replace(teacher, weight=teacher.weight.to(device), bias=bias)
        return self._copy

    _copy: DenseTeacher | None = None

    def _with_tail(self, ids: Tensor, logprobs: Tensor) -> SparseTeacher:
        """What a server said of its likeliest tokens at T = 1, [M, K], as a distribution.

        The tail is what they leave of 1: nothing where they are the whole vocabulary, and else at
        least UNSEEN. At another temperature the entries are only good for `renormalize`.
        """
        logprobs = logprobs.double()
        if self.support == "renormalize":
            logprobs = logprobs / self.temperature
            total = logprobs.logsumexp(-1, keepdim=True)
            return SparseTeacher(ids, (logprobs - total).float())
        assert self.temperature == 1.0
        left = (1.0 - logprobs.exp().sum(-1)).clamp_min(UNSEEN)
        whole = (ids >= 0).sum(-1) >= self.vocabulary.size
        tail = left.masked_fill(whole, 0.0).log()
        scale = torch.log1p(-tail.exp()) - logprobs.logsumexp(-1)
        return SparseTeacher(ids, (logprobs + scale[:, None]).float(), tail.float())


def live_signal(
    args: DistillArgs,
    teacher: TeacherArgs,
    reading: Reading,
    student: PreTrainedModel,
    layers: tuple[int, ...] = (),
) -> LiveSignal:
    """The source that asks `teacher`: loaded here, reached, or the student itself.

    layers   of a teacher that is here, whose outputs are wanted

    Raises CaptureError where a model cannot be loaded.
    """
    vocabulary = reading.vocabulary
    if teacher.server is not None:
        server = ServerTeacher(teacher, vocab_size=vocabulary.size)
        want = Want(likeliest=min(args.k, vocabulary.size), realised=True)
        support = args.support or "tail_bucket"
        own = args.temperature / teacher.tempered
        return LiveSignal(server, teacher.model, vocabulary, want, support, own, batched=False)
    local: ModelTeacher
    if teacher.self:
        average = None if teacher.ema is None else Average(student, teacher.ema)
        local = SelfTeacher(student, teacher.own_weights, average)
    else:
        local = HFTeacher(beside(teacher, student), vocab_size=vocabulary.size)
    want = Want(unprojected=True, layers=layers)
    return LiveSignal(
        *(local, local.name, vocabulary, want, "tail_bucket", args.temperature),
        batched=True,
        together=bool(teacher.sharded),
        context=reading.context,
        by_row=reading.by_row,
    )


def _to(said: Any, name: str, device: torch.device) -> Tensor:
    return getattr(said, name).to(device)
