"""The objective on the student's logits: cross-entropy and a divergence from the teacher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from distill_kernels import (
    DenseLogits,
    DistillOutput,
    DistillSpec,
    SparseTeacher,
    VocabShard,
    distill_loss,
    fused_linear_distill,
)
from distill_kernels.linear import Backend
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.heads.head import FusedHead
from axolotl_distill.objectives.base import Objective, Term
from axolotl_distill.objectives.overlap import top_overlap
from axolotl_distill.objectives.student import StudentOutput
from axolotl_distill.signal.signal import Said, Signal, Want
from axolotl_distill.signal.source import SignalSource

SAID = ("teacher_mass", "top1_agreement")
KLS = ("forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl")


@dataclass(frozen=True)
class _Part:
    """A teacher, and the positions that it speaks of; None: all of them."""

    name: str
    at: Tensor | None
    teacher: Distribution


class LogitsObjective(Objective):
    """(1 - alpha) CE(student, target) + alpha T^2 D(teacher_T || student_T), as `spec` says it.

    A position of which the teacher says nothing is CE alone. It logs, in nats, `ce` and `entropy`
    (the student's, at T) per target, and per target with a teacher `kl`, D without the T^2 (`kd`
    where D is no Kullback-Leibler divergence), `teacher_mass` (what the teacher's entries hold, at
    T) and `top1_agreement`.

    spec     with reduction "sum"; with alpha 0 and no `teacher`, cross-entropy
    overlap  `overlap` is logged too, of some positions (objectives/overlap.py)
    """

    def __init__(
        self,
        spec: DistillSpec,
        backend: Backend = "auto",
        *,
        teacher: bool = True,
        overlap: bool = False,
    ):
        super().__init__()
        assert spec.reduction == "sum" and (teacher or spec.alpha == 0)
        self.spec, self.backend, self.overlap = spec, backend, overlap
        self.wants = Want() if teacher else None

    def forward(
        self,
        student: StudentOutput,
        signal: Said | None,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Term:
        """See Objective. Of several teachers' parts the loss is the sum, and what is logged is of
        all of them; the divergence is logged of each too, as `kl/NAME`."""
        parts = _parts(signal, targets)
        total, outs = self._loss(student, parts, targets, weights)
        found = {
            "ce": _sums((out.ce, out.num_tokens) for out in outs),
            "entropy": _sums((out.entropy, out.num_tokens) for out in outs),
        }
        name = "kl" if self.spec.divergence in KLS else "kd"
        for logged, of in {name: "kd", **dict(zip(SAID, SAID, strict=True))}.items():
            found[logged] = _sums((getattr(out, of), out.num_teacher_tokens) for out in outs)
        if self.overlap:
            found["overlap"] = _sums(
                top_overlap(_at(student, part.at), part.teacher, _taken(targets, part.at))
                for part in parts
            )
        if len(parts) > 1:
            for part, out in zip(parts, outs, strict=True):
                found[f"{name}/{part.name}"] = (out.kd, out.num_teacher_tokens)
        return Term(total, found)

    def _loss(
        self,
        student: StudentOutput,
        parts: Sequence[_Part],
        targets: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, list[DistillOutput]]:
        """The sum of the parts' losses, and each. A head of which this process has a part is there
        once, for all of them."""

        def loss(states: Tensor) -> tuple[Tensor, list[DistillOutput]]:
            outs = []
            for part in parts:
                own = (_taken(states, part.at), part.teacher, _taken(targets, part.at))
                its = None if weights is None else _taken(weights, part.at)
                if student.head is None:
                    outs.append(distill_loss(*own, spec=self.spec, weights=its))
                else:
                    outs.append(self._fused(student.head, *own, its))
            return torch.stack([out.loss for out in outs]).sum(), outs

        head = student.head
        return loss(student.states) if head is None else head.in_window(loss, student.states)

    def _fused(
        self,
        head: FusedHead,
        hidden_MD: Tensor,
        teacher: Distribution,
        targets: Tensor,
        weights: Tensor | None,
    ) -> DistillOutput:
        weight, shard = head.weight(), head.shard
        return fused_linear_distill(
            hidden_MD,
            weight,
            _of_ids(teacher, shard, weight.shape[0]),
            targets,
            spec=self.spec,
            weights=weights,
            bias=head.bias(),
            low_rank=head.low_rank(hidden_MD),
            logit_transform=head.transform,
            shard=shard,
            backend=self.backend,
        )


def logits_objective(
    args: DistillArgs, source: SignalSource | None, *, overlap: bool = False
) -> LogitsObjective:
    """The loss of a `distill:` block; without a source of a signal it is the cross-entropy.

    overlap  see LogitsObjective"""
    if source is None:
        spec = DistillSpec(
            alpha=0.0,
            label_smoothing=args.label_smoothing,
            support="renormalize",
            reduction="sum",
        )
        return LogitsObjective(spec, args.backend, teacher=False)
    spec = DistillSpec(
        divergence=args.divergence,
        temperature=args.temperature,
        alpha=args.alpha,
        beta=args.beta,
        skew=args.skew,
        akl_mu=args.akl_mu,
        label_smoothing=args.label_smoothing,
        support=source.support,
        reduction="sum",
    )
    return LogitsObjective(spec, args.backend, overlap=overlap)


def _parts(signal: Said | None, targets: Tensor) -> list[_Part]:
    if signal is None:
        return [_Part("", None, _silence(targets))]
    if isinstance(signal, Signal):
        return [_Part("", None, signal.distribution)]
    return [_Part(part.name, part.at, part.signal.distribution) for part in signal]


def _of_ids(teacher: Distribution, shard: VocabShard, size: int) -> Distribution:
    """What the loss takes of a teacher where this process has `size` ids of the student's head."""
    if shard.group is None or isinstance(teacher, SparseTeacher):
        return teacher
    last = shard.start + size
    if isinstance(teacher, DenseLogits):
        return DenseLogits(teacher.logits[:, shard.start : last])
    mine = slice(shard.start, last)
    bias = None if teacher.bias is None else teacher.bias[mine]
    return replace(teacher, weight=teacher.weight[mine], bias=bias)


def _taken(values: Tensor, at: Tensor | None) -> Tensor:
    return values if at is None else values[at]


def _at(student: StudentOutput, at: Tensor | None) -> StudentOutput:
    return student if at is None else replace(student, states=student.states[at])


def _sums(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, counts = zip(*pairs, strict=True)
    return torch.stack(values).sum(0), torch.stack(counts).sum(0)


def _silence(targets: Tensor) -> SparseTeacher:
    """A teacher that says nothing of any position."""
    ids = torch.full((targets.numel(), 1), -1, device=targets.device)
    return SparseTeacher(ids, torch.full(ids.shape, -torch.inf, device=targets.device))
