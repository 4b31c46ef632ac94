"""What is asked of the loss, and what comes back."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Divergence = Literal["forward_kl"]
Support = Literal["tail_bucket", "renormalize", "sampled"]
Reduction = Literal["mean", "sum"]

IGNORE = -100


@dataclass(frozen=True)
class DistillSpec:
    """The loss of one supervised row, in nats:

        (1 - alpha) * CE(student, label) + alpha * T^2 * D(teacher_T || student_T)

    where `_T` means logits divided by the temperature T. A row without a teacher is CE alone.

    divergence   "forward_kl": D = sum_j p_j (log p_j - log q_j), p the teacher, q the student
    temperature  T > 0
    alpha        in [0, 1]
    support      what a sparse teacher stands for:
                 "tail_bucket"  its entries, and one more outcome for everything else
                 "renormalize"  its entries alone; both sides are conditioned on them
                 "sampled"      draws from the whole distribution: an unbiased estimate of D
    reduction    "mean" over the rows whose label is not -100, or their "sum"

    Raises ValueError for any other value.
    Sources: Hinton et al. 2015 (arXiv 1503.02531); sampled support: arXiv 2503.16870.
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    alpha: float = 1.0
    support: Support = "tail_bucket"
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("divergence", get_args(Divergence)),
            ("support", get_args(Support)),
            ("reduction", get_args(Reduction)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: expected a number from 0 to 1")


@dataclass(frozen=True)
class DistillOutput:
    """The loss and what it is made of. All are scalars on the inputs' device, fp32 or wider.

    loss              differentiable, reduced as the spec says
    The rest carries no gradient and is a sum over rows (divide to get a mean):
    kd                D in nats, without T^2, over rows with a teacher
    ce                cross-entropy in nats, over rows with a label
    num_tokens        rows with a label
    num_teacher_tokens  rows with a label and a teacher
    teacher_mass      teacher probability, at T, that the entries hold
    top1_agreement    rows where the student's likeliest token is the teacher's
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    num_tokens: Tensor
    num_teacher_tokens: Tensor
    teacher_mass: Tensor
    top1_agreement: Tensor
