"""The teacher's distribution: a few entries a row and what is known of the rest, or all of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill_kernels.spec import IGNORE
from distill_kernels.transform import LogitTransform


@dataclass(frozen=True)
class SparseTeacher:
    """Row n gives the teacher's distribution of the token that hidden[n] predicts.

    ids           int64 [N, K], distinct within a row, below V; -1 = no entry
    logprobs      fp32 [N, K], nats, of the whole distribution AT THE SPEC'S TEMPERATURE; for
                  sampled support, the log of the share of draws (the shares of a row sum to 1).
                  -inf where there is no entry.
    tail_logprob  fp32 [N], nats: log of the mass outside the entries at that temperature
                  (-inf = none). Needed for tail_bucket.
    entropy       fp32 [N], nats: of the whole distribution at that temperature. Makes the
                  sampled divergence a KL; without it the value lacks this constant.

    A row whose ids are all -1 has no teacher.
    """

    ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor | None = None
    entropy: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape != self.logprobs.shape or not self.ids.shape[1]:
            raise ValueError(
                f"ids {tuple(self.ids.shape)} and logprobs {tuple(self.logprobs.shape)}: expected "
                "the same shape [N, K] with K >= 1"
            )
        for name in ("tail_logprob", "entropy"):
            value = getattr(self, name)
            if value is not None and value.shape != self.ids.shape[:1]:
                raise ValueError(
                    f"{name} {tuple(value.shape)}: expected one value a row, [{self.ids.shape[0]}]"
                )

    @property
    def num_rows(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "SparseTeacher":
        return SparseTeacher(
            self.ids[rows],
            self.logprobs[rows],
            None if self.tail_logprob is None else self.tail_logprob[rows],
            None if self.entropy is None else self.entropy[rows],
        )


@dataclass(frozen=True)
class DenseLogits:
    """The teacher's logits for every row: logits [N, Vt], any float type, at T = 1.

    The teacher's distribution is over the student's V ids: ids that only the teacher has are left
    out before its softmax, ids that only the student has get probability 0. So heads padded to
    different sizes go together. Every row with a label has a teacher.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        if self.logits.dim() != 2:
            raise ValueError(f"teacher logits {tuple(self.logits.shape)}: expected [N, Vt]")

    @property
    def num_rows(self) -> int:
        return self.logits.shape[0]

    def __getitem__(self, rows: slice) -> "DenseLogits":
        return DenseLogits(self.logits[rows])


@dataclass(frozen=True)
class DenseTeacher:
    """The teacher's last hidden states and its head; its logits are made chunk by chunk.

        logits = logit_transform(hidden @ weight.T + bias)

    hidden [N, Dt], weight [Vt, Dt], bias [Vt] or None; no gradient flows into them. Ids that only
    one side has are treated as in DenseLogits.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_transform: LogitTransform = field(default_factory=LogitTransform)

    def __post_init__(self) -> None:
        hidden, weight = self.hidden, self.weight
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                f"teacher hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected "
                "[N, Dt] and [Vt, Dt]"
            )

    @property
    def num_rows(self) -> int:
        return self.hidden.shape[0]

    def __getitem__(self, rows: slice) -> "DenseTeacher":
        return DenseTeacher(self.hidden[rows], self.weight, self.bias, self.logit_transform)


Teacher = SparseTeacher | DenseLogits | DenseTeacher


def dense_size(teacher: Teacher) -> int | None:
    """Ids that a dense teacher has a logit for; None for a sparse one."""
    if isinstance(teacher, SparseTeacher):
        return None
    return teacher.logits.shape[1] if isinstance(teacher, DenseLogits) else teacher.weight.shape[0]


def taught_rows(teacher: Teacher, labels: Tensor) -> Tensor:
    """Rows with a label and a teacher, bool [N]."""
    labelled = labels != IGNORE
    if isinstance(teacher, SparseTeacher):
        return labelled & (teacher.ids >= 0).any(-1)
    return labelled


def teacher_top1(teacher: SparseTeacher) -> Tensor:
    """The teacher's likeliest token, int64 [N]; -1 for a row without entries."""
    best = teacher.logprobs.masked_fill(teacher.ids < 0, -torch.inf).argmax(-1, keepdim=True)
    return teacher.ids.gather(1, best).squeeze(1)


def head_mass(teacher: Teacher) -> Tensor:
    """Teacher probability that the entries hold, fp32 [N]; 1 where no tail is known."""
    if not isinstance(teacher, SparseTeacher):
        return torch.ones((), dtype=torch.float32)
    if teacher.tail_logprob is None:
        return torch.ones_like(teacher.logprobs[:, 0])
    return -torch.expm1(teacher.tail_logprob)
