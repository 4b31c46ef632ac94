"""The objective on the student's logits: cross-entropy and a divergence from the teacher."""

from dataclasses import replace

import torch
from distill_kernels import (
    DistillOutput,
    DistillSpec,
    SparseTeacher,
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
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.signal.source import SignalSource

KLS = ("forward_kl", "reverse_kl", "skew_forward_kl", "skew_reverse_kl")


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
        signal: Signal | None,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Term:
        """See Objective."""
        teacher = _silence(targets) if signal is None else signal.distribution
        if student.head is None:
            out = distill_loss(student.states, teacher, targets, spec=self.spec, weights=weights)
        else:
            out = self._fused(student.head, student.states, teacher, targets, weights)
        also = {"overlap": top_overlap(student, teacher, targets)} if self.overlap else {}
        return Term(
            out.loss,
            {
                "ce": (out.ce, out.num_tokens),
                "entropy": (out.entropy, out.num_tokens),
                "kl" if self.spec.divergence in KLS else "kd": (out.kd, out.num_teacher_tokens),
                "teacher_mass": (out.teacher_mass, out.num_teacher_tokens),
                "top1_agreement": (out.top1_agreement, out.num_teacher_tokens),
                **also,
            },
        )

    def _fused(
        self,
        head: FusedHead,
        hidden_MD: Tensor,
        teacher: Distribution,
        targets: Tensor,
        weights: Tensor | None,
    ) -> DistillOutput:
        def loss(hidden_MD: Tensor) -> tuple[Tensor, DistillOutput]:
            out = fused_linear_distill(
                hidden_MD,
                head.weight(),
                teacher,
                targets,
                spec=self.spec,
                weights=weights,
                bias=head.base.bias,
                low_rank=head.low_rank(hidden_MD),
                logit_transform=head.transform,
                backend=self.backend,
            )
            return out.loss, out

        total, out = head.in_window(loss, hidden_MD)
        return replace(out, loss=total)


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


def _silence(targets: Tensor) -> SparseTeacher:
    """A teacher that says nothing of any position."""
    ids = torch.full((targets.numel(), 1), -1, device=targets.device)
    return SparseTeacher(ids, torch.full(ids.shape, -torch.inf, device=targets.device))
