"""What is asked of the loss, and what comes back."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "tvd",
    "adaptive_kl",
]
Support = Literal["tail_bucket", "renormalize", "sampled"]
Reduction = Literal["mean", "sum", "none"]

IGNORE = -100


@dataclass(frozen=True)
class DistillSpec:
    """The loss of one supervised row, in nats:

        (1 - alpha) * CE(student, label) + alpha * T^2 * D(teacher_T || student_T)

    where `_T` means logits divided by the temperature T. A row without a teacher is CE alone.

    divergence   D, over the outcomes ("bins") of `support`, p the teacher and q the student;
                 the equations and sources are in divergences.py
                 "forward_kl"       KL(p || q)
                 "reverse_kl"       KL(q || p)
                 "jsd"              JSD_beta / (beta (1 - beta)): forward KL at 0, reverse at 1
                 "skew_forward_kl"  KL(p || skew p + (1 - skew) q)
                 "skew_reverse_kl"  KL(q || skew q + (1 - skew) p)
                 "tvd"              half the sum of |p - q|
                 "adaptive_kl"      forward and reverse KL, weighed by where the gap is
    temperature  T > 0
    alpha        in [0, 1]
    beta         in [0, 1], read by "jsd"
    skew         in [0, 1), read by the skewed KLs
    akl_mu       in (0, 1), read by "adaptive_kl": teacher mass that counts as the head
    label_smoothing  e in [0, 1): CE becomes (1 - e) CE + e * mean over the vocabulary of -log q,
                 as in torch.nn.functional.cross_entropy
    support      what a sparse teacher stands for (a dense one is the whole vocabulary):
                 "tail_bucket"  its entries, and one more outcome for everything else
                 "renormalize"  its entries alone; both sides are conditioned on them
                 "sampled"      draws from the whole distribution: an unbiased estimate of
                                forward KL, and of no other divergence
    reduction    "mean" over the rows whose label is not -100, their "sum", or "none": [N]

    Raises ValueError for any other value, and for sampled support with another divergence.
    Sources: Hinton et al. 2015 (arXiv 1503.02531); sampled support: arXiv 2503.16870.
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    alpha: float = 1.0
    beta: float = 0.5
    skew: float = 0.1
    akl_mu: float = 0.5
    label_smoothing: float = 0.0
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
        for name, fits, expected in (
            ("temperature", self.temperature > 0, "a number above 0"),
            ("alpha", 0 <= self.alpha <= 1, "a number from 0 to 1"),
            ("beta", 0 <= self.beta <= 1, "a number from 0 to 1"),
            ("skew", 0 <= self.skew < 1, "a number from 0 to below 1"),
            ("akl_mu", 0 < self.akl_mu < 1, "a number between 0 and 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "a number from 0 to below 1"),
        ):
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")
        if self.support == "sampled" and self.divergence != "forward_kl":
            raise ValueError(
                f"divergence={self.divergence!r} is not defined for support='sampled': draws give "
                "an unbiased forward_kl only. Use forward_kl, or a teacher with entries and a tail."
            )


@dataclass(frozen=True)
class DistillOutput:
    """The loss and what it is made of, on the inputs' device, fp32 or wider.

    loss              differentiable, reduced as the spec says: a scalar, or [N]
    The rest are scalars without a gradient, summed over rows (divide to get a mean):
    kd                D in nats, without T^2, over rows with a teacher
    ce                cross-entropy in nats, without label smoothing, over rows with a label
    num_tokens        rows with a label
    num_teacher_tokens  rows with a label and a teacher
    teacher_mass      teacher probability, at T, that the entries hold; 1 a row when dense
    top1_agreement    rows where the student's likeliest token is the teacher's
    entropy           the student's, at T, in nats, over rows with a label
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    num_tokens: Tensor
    num_teacher_tokens: Tensor
    teacher_mass: Tensor
    top1_agreement: Tensor
    entropy: Tensor
