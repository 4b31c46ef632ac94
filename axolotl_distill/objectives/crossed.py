"""What objectives have in common whose teacher has other tokens than the student."""

from abc import abstractmethod
from dataclasses import replace

import numpy as np
import torch
from distill_kernels import DenseLogits, DenseTeacher
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from axolotl_distill.align.survey import Survey
from axolotl_distill.objectives.base import Objective, Term
from axolotl_distill.objectives.student import StudentOutput
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.signal.signal import Pairs, Signal, Want

CHUNK_BYTES = 128 << 20
"""Of the student's logits at once, in fp32; the backward pass makes them again."""


class CrossObjective(Objective):
    """(1 - alpha) CE(student, target) + alpha D of a token's span; CE alone of a token without one.

    D is the method's, one number of a span of text that both sides bound. A span counts as its
    student's tokens do together, so that alpha weighs tokens as it does elsewhere. It logs `ce` per
    target; D, under the method's name, per target with a span; and `paired`, their share.
    """

    name: str
    wants = Want(unprojected=True)

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    @abstractmethod
    def distance(
        self, own: Tensor, own_log: Tensor, theirs: Tensor, their_log: Tensor, pairs: Pairs
    ) -> Tensor:
        """D of every span, fp32 [G].

        own, theirs          int64 [m], [n]: the tokens that come
        own_log, their_log   log-probabilities fp32 [m, V], [n, Vt]
        pairs                of these
        """

    def settle(self, survey: Survey) -> None:
        """Takes up what all of the text shows of both tokenizers; to be called before the first
        batch."""

    def settled(self, pairs: Pairs, teacher: Distribution) -> Pairs:
        """The spans that are compared."""
        return pairs

    def forward(
        self,
        student: StudentOutput,
        signal: Signal | None,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Term:
        """See Objective."""
        assert signal is not None and signal.pairs is not None
        pairs = self.settled(signal.pairs, signal.distribution)
        counts = (targets != IGNORE).float()
        weights = counts if weights is None else weights
        size = _vocabulary(student)
        rows = max(1, CHUNK_BYTES // (4 * size))
        sums = student.states.new_zeros((), dtype=torch.float32)
        seen = torch.zeros(3, device=targets.device)

        def part(states: Tensor, at: slice, some: Pairs) -> tuple[Tensor, Tensor]:
            return self._part(student, states, targets[at], weights[at], signal.distribution, some)

        for at, some in _chunks(pairs, len(targets), rows):
            value, found = checkpoint(part, student.states[at], at, some, use_reentrant=False)
            sums, seen = sums + value, seen + found.detach()
        ce, distance, paired = seen
        metrics = {
            "ce": (ce, counts.sum()),
            self.name: (distance, paired),
            "paired": (paired, counts.sum()),
        }
        return Term(sums, metrics)

    def _part(
        self,
        student: StudentOutput,
        states: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher: Distribution,
        pairs: Pairs,
    ) -> tuple[Tensor, Tensor]:
        """(the sum over these positions, [3]: sums of ce, of D and of tokens with a span)."""
        head = student.head
        logits = states if head is None else head.transform(head.module(states))
        with torch.autocast(states.device.type, enabled=False):
            own_log = logits.float().log_softmax(-1)
            kept = targets.clamp_min(0)
            counts = (targets != IGNORE).float()
            ce = F.nll_loss(own_log, kept, reduction="none").masked_fill(counts == 0, 0.0)
            share = torch.zeros_like(counts)
            total = distance = paired = counts.new_zeros(())
            if len(pairs):
                begin, behind = int(pairs.teacher[0, 0]), int(pairs.teacher[-1, 1])
                their_log = log_probabilities(teacher, slice(begin, behind))
                local = replace(pairs, teacher=pairs.teacher - begin)
                values = self.distance(kept, own_log, pairs.tokens[begin:behind], their_log, local)
                span = torch.full((len(targets),), -1, device=targets.device)
                for number, (first, last) in enumerate(pairs.student.tolist()):
                    span[first:last] = number
                inside = (span >= 0).float()
                each = values[span.clamp_min(0)] * inside
                share = self.alpha * inside
                total = total + (weights * share * each).sum()
                distance, paired = (each * counts).sum().detach(), (inside * counts).sum()
            total = total + (weights * (1 - share) * ce).sum()
        return total, torch.stack([ce.sum().detach(), distance, paired])


def log_probabilities(teacher: Distribution, rows: slice) -> Tensor:
    """fp32 [n, Vt] of a dense teacher."""
    with torch.no_grad():
        if isinstance(teacher, DenseTeacher):
            logits = teacher.logit_transform(
                F.linear(
                    teacher.hidden[rows].to(teacher.weight.dtype), teacher.weight, teacher.bias
                )
            )
        else:
            assert isinstance(teacher, DenseLogits)
            logits = teacher.logits[rows]
        return logits.float().log_softmax(-1)


def prefix_sums(log: Tensor, spans: np.ndarray, tokens: Tensor, *, last: bool) -> Tensor:
    """fp32 [G]: what the log-probabilities of the tokens that came sum to in each span, with the
    last one or without.

    log [m, V]; spans int64 [G, 2]; tokens int64 [m]
    """
    came = log.gather(1, tokens[:, None])[:, 0]
    span = torch.full_like(tokens, len(spans))
    for number, (first, behind) in enumerate(spans.tolist()):
        span[first : behind if last else behind - 1] = number
    return came.new_zeros(len(spans) + 1).index_add(0, span, came)[: len(spans)]


def _vocabulary(student: StudentOutput) -> int:
    return student.states.shape[-1] if student.head is None else student.head.base.weight.shape[0]


def _chunks(pairs: Pairs, size: int, rows: int) -> list[tuple[slice, Pairs]]:
    """Slices of [0, size) of about so many rows, none of which cuts a span, with their spans, whose
    student's rows count from the slice's first."""
    found, start, span = [], 0, 0
    while start < size:
        stop, behind = min(start + rows, size), span
        while behind < len(pairs) and pairs.student[behind, 0] < stop:
            stop = max(stop, int(pairs.student[behind, 1]))
            behind += 1
        some = slice(span, behind)
        local = Pairs(
            pairs.student[some] - start, pairs.teacher[some], pairs.ends[some], pairs.tokens
        )
        found.append((slice(start, stop), local))
        start, span = stop, behind
    return found
