"""The objective on what layers hand on: the student's follow the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axolotl_distill.config.hidden import HiddenArgs, HiddenLoss
from axolotl_distill.objectives.base import Objective, Term
from axolotl_distill.objectives.student import StudentOutput
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.signal.signal import Signal, Want


class HiddenObjective(Objective):
    """`weight` times the mean over P pairs of a loss between W s and t; see `HiddenArgs`.

    FitNets (arXiv 1412.6550) has the projection, DistilBERT (1910.01108) the cosine. It logs
    `hidden`, the mean over pairs without the weight, per target.

    pairs   (layer of the student, layer of the teacher)
    widths  Ds of the student, Dt of the teacher

    The projections W, fp32 [Dt, Ds] without a bias, are made where `projection` is always or the
    widths differ; as the identity and, where the widths differ, zeros beside it or a part of it.
    """

    def __init__(self, args: HiddenArgs, pairs: Sequence[tuple[int, int]], widths: tuple[int, int]):
        super().__init__()
        self.args = args
        self.student_layers = tuple(own for own, _ in pairs)
        self.wants = Want(layers=tuple(other for _, other in pairs))
        own, other = widths
        projected = args.projection == "always" or own != other
        self.projections = nn.ParameterList(
            [torch.eye(other, own) for _ in pairs] if projected else []
        )

    def forward(
        self,
        student: StudentOutput,
        signal: Signal | None,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Term:
        """See Objective."""
        assert signal is not None and student.layers is not None
        counts = (targets != IGNORE).float()
        weights = counts if weights is None else weights
        if signal.known is not None:
            weights, counts = weights * signal.known, counts * signal.known
        own_MPD = student.layers.float()
        if signal.layers is None:  # No document has a target.
            zero = own_MPD.sum() * 0 + sum(weight.sum() * 0 for weight in self.projections)
            return Term(zero, {"hidden": (zero.detach(), counts.sum())})
        total = seen = own_MPD.new_zeros(())
        number = len(self.student_layers)
        with torch.autocast(own_MPD.device.type, enabled=False):
            for at in range(number):
                own, other = own_MPD[:, at], signal.layers[:, at].float()
                if signal.known is not None:
                    # Of nothing, a loss may be infinite.
                    other = torch.where(signal.known[:, None], other, 1.0)
                if len(self.projections):
                    own = F.linear(own, self.projections[at])
                loss = hidden_loss(own, other, self.args.loss)
                total = total + (loss * weights).sum() / number
                seen = seen + (loss.detach() * counts).sum() / number
        return Term(self.args.weight * total, {"hidden": (seen, counts.sum())})


def hidden_loss(own: Tensor, other: Tensor, kind: HiddenLoss) -> Tensor:
    """[M] from the projected student's and the teacher's [M, D], in their type."""
    if kind == "mse":
        return (own - other).square().mean(-1)
    if kind == "cosine":
        return 1 - F.cosine_similarity(own, other, dim=-1)
    return (own - other).square().sum(-1) / other.square().sum(-1).clamp_min(
        torch.finfo(other.dtype).tiny
    )
