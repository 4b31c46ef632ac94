"""What an objective is: one part of the loss, with what it needs and what it logs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from axolotl_distill.objectives.student import StudentOutput
from axolotl_distill.signal.signal import Signal, Want


@dataclass(frozen=True)
class Term:
    """An objective's part of a batch's loss.

    total    a scalar with a gradient: the sum over positions of weight * loss
    metrics  by name, two scalars without a gradient, a sum and what it is divided by to be logged;
             both are first added up over batches and ranks
    """

    total: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


class Objective(nn.Module, ABC):
    """A part of the loss. Parameters of its own are trained with the student's; they stay out of
    what is saved.

    wants           what it asks of the teacher; None where the targets are all that it needs
    student_layers  of the student, whose outputs it needs
    """

    wants: Want | None = None
    student_layers: tuple[int, ...] = ()

    @abstractmethod
    def forward(
        self,
        student: StudentOutput,
        signal: Signal | None,
        targets: Tensor,
        weights: Tensor | None,
    ) -> Term:
        """The term of M positions.

        signal   of these positions; None where it wants none
        targets  int64 [M]: the token after each, IGNORE where the position counts for nothing
        weights  fp32 [M], 0 where the target is IGNORE; None = 1 everywhere

        Every parameter that needs a gradient must get one, if of zeros, also where nothing counts:
        DDP waits for it.
        """
