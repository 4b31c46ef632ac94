"""A chunk of rows: what the sweep hands to a backend and gets back, and how it lies in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from distill_kernels.shard import WHOLE, Extent, VocabShard
from distill_kernels.spec import DistillSpec
from distill_kernels.task import Task
from distill_kernels.teacher import DenseLogits, SparseTeacher
from distill_kernels.transform import LogitTransform

PADDING = 64
"""Rows of a buffer begin at multiples of this many logits, whatever the vocabulary is."""


@dataclass(frozen=True)
class Chunk:
    """C rows whose products are made: logits = transform(logits_CV + bias_V).

    logits_CV   fp32, of `buffer`: the head's products. Destroyed, its padding too
    bias_V      any float type, or None
    teacher     of these rows. A DenseLogits is fp32 [C, V], of another buffer, -inf where the
                teacher has no such id; destroyed as well
    labels_C    int64
    scale_C     fp32: d(what is differentiated) / d(loss of a row); None = no gradient is wanted
    grad_dtype  of the gradient that is wanted
    shard       where V is this process's part of the vocabulary
    of_group    of its group's shards; None = the head is whole
    """

    logits_CV: Tensor
    bias_V: Tensor | None
    transform: LogitTransform
    teacher: SparseTeacher | DenseLogits
    labels_C: Tensor
    spec: DistillSpec
    scale_C: Tensor | None
    grad_dtype: torch.dtype
    shard: VocabShard = WHOLE
    of_group: Extent | None = None

    @property
    def extent(self) -> Extent:
        """Of the vocabulary over all processes that have a part of it."""
        return self.of_group or Extent(((0, self.logits_CV.shape[1]),))

    def __getitem__(self, rows: slice) -> "Chunk":
        return replace(
            self,
            logits_CV=self.logits_CV[rows],
            teacher=self.teacher[rows],
            labels_C=self.labels_C[rows],
            scale_C=None if self.scale_C is None else self.scale_C[rows],
        )


@dataclass
class RowValues:
    """Per-row results of a chunk, fp32 [C]; 0 in rows without a label (kd, top1: a teacher)."""

    loss: Tensor
    kd: Tensor
    ce: Tensor
    top1: Tensor
    entropy: Tensor


class RowBackend(Protocol):
    """What the sweep asks of a backend; a module of `backends`."""

    def rows(self, chunk: Chunk) -> tuple[RowValues, Tensor | None]:
        """(values of the rows, scale times d loss / d product [C, V] in `grad_dtype`, or None
        without a scale). The gradient may lie in the memory of the logits."""
        ...

    def temporary_bytes(self, task: Task, device: torch.device, grad_dtype: torch.dtype) -> int:
        """Bytes a logit that `rows` holds for a moment beside the logits and the teacher's."""
        ...


def concatenate(values: Sequence[RowValues], device: torch.device) -> RowValues:
    if not values:
        return RowValues(*torch.zeros(5, 0, device=device))
    names = [field.name for field in fields(RowValues)]
    return RowValues(*(torch.cat([getattr(value, name) for value in values]) for name in names))


def buffer(rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """fp32 [rows, V], uninitialised, whose rows begin at multiples of PADDING."""
    return torch.empty(rows, padded(vocab_size), device=device)[:, :vocab_size]


def padded(vocab_size: int) -> int:
    """Logits from one row of a buffer to the next."""
    return -(-vocab_size // PADDING) * PADDING


def narrow_view(logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, V] of a 2-byte type in the first half of each row of 4-byte logits."""
    return logits_CV.view(dtype)[:, : logits_CV.shape[1]]
