"""The loss to compute, as all below the public function takes it: its inputs, and all the rest."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from distill_kernels.matmul import Weight
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import DistillSpec
from distill_kernels.teacher import Teacher
from distill_kernels.transform import LogitTransform


class Inputs(NamedTuple):
    """What gradients may flow into: logits = transform(hidden W.T + left right.T + bias).

    hidden [N, D], weight [V, D], bias [V] or None; left [N, r] and right [V, r], or None both
    """

    hidden: Tensor
    weight: Weight
    bias: Tensor | None
    left: Tensor | None
    right: Tensor | None


ROWS = (0, 3)
"""Which of them have a row for every token; the gradients of the others are sums over tokens."""


@dataclass(frozen=True)
class Task:
    """A loss without its inputs.

    teacher  of the N rows
    labels   int64 [N]
    weights  [N] or None = 1 everywhere
    backend  by its name; below the public function "torch" or "triton"
    """

    teacher: Teacher
    labels: Tensor
    spec: DistillSpec
    transform: LogitTransform
    backend: str
    weights: Tensor | None = None
    shard: VocabShard = WHOLE
