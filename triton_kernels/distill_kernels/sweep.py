"""Chunks of rows through one reused buffer: logits, row math, products of the gradient."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill_kernels.checks import check_values
from distill_kernels.matmul import Weight, add_to_weight, back_to_hidden, project
from distill_kernels.rows_torch import RowValues, rows_torch, rows_torch_dense
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher, Teacher
from distill_kernels.transform import LogitTransform

CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 960 << 20}
BLOCK_BYTES = 2 << 20
"""Logits that the row math of the torch backend sweeps at once on a CPU: they stay in its cache."""
MIN_ROWS = 32
SPARSE_TEMPORARIES, DENSE_TEMPORARIES = 4, 32
"""Bytes a logit that the torch backend holds for a moment where it does not work in blocks."""


class Inputs(NamedTuple):
    """What gradients may flow into: logits = transform(hidden W.T + left right.T + bias)."""

    hidden: Tensor
    weight: Weight
    bias: Tensor | None
    left: Tensor | None
    right: Tensor | None


ROWS = (0, 3)
"""Which of them have a row for every token; the gradients of the others are sums over tokens."""


@dataclass(frozen=True)
class Task:
    """A loss to compute, without its inputs; backend "torch" or "triton"."""

    teacher: Teacher
    labels: Tensor
    spec: DistillSpec
    transform: LogitTransform
    backend: str
    shard: VocabShard = WHOLE


def chunk_rows(num_rows: int, vocab_size: int, device_type: str, logit_bytes: int = 4) -> int:
    """Rows of a chunk: as many as the budget holds, in chunks of about equal size.

    logit_bytes  what is held at once for every row and id: logits, the teacher's, a lowered copy
    """
    budget = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cuda"])
    most = max(MIN_ROWS, budget // (logit_bytes * vocab_size))
    return max(1, math.ceil(num_rows / max(1, math.ceil(num_rows / most))))


def row_scale(labels_N: Tensor, spec: DistillSpec) -> Tensor:
    """d loss / d (loss of a row) for reductions to a scalar, fp32 scalar."""
    if spec.reduction == "mean":
        return 1.0 / (labels_N != IGNORE).sum().clamp_min(1).float()
    return torch.ones((), device=labels_N.device)


def sweep(
    inputs: Inputs, task: Task, scale: Tensor | None, wants: tuple[bool, ...]
) -> tuple[RowValues, list[Tensor | None]]:
    """(values of every row, gradients of `inputs`).

    scale  d(what is differentiated) / d(loss of a row): a scalar, [N], or None with no `wants`
    wants  which of `inputs` get a gradient; the weight's, the bias's and right's are fp32
    """
    hidden_ND, weight_VD, bias_V, left_NR, right_VR = inputs
    check_values(task.shard.whole_size(weight_VD.shape[0]), task.teacher, task.labels)
    (num_rows, _), vocab_size = hidden_ND.shape, weight_VD.shape[0]
    new = dict(dtype=torch.float32, device=hidden_ND.device)
    grad_hidden, grad_weight, grad_bias, grad_left, grad_right = (
        torch.empty_like(x, dtype=x.dtype if i in ROWS else torch.float32) if wanted else None
        for i, (x, wanted) in enumerate(zip(inputs, wants, strict=True))
    )
    dense = not isinstance(task.teacher, SparseTeacher)
    low = hidden_ND.is_cuda and hidden_ND.dtype != torch.float32
    # The Triton kernels write a low gradient over the logits; a transform's slope needs it wide.
    in_place = low and task.backend == "triton" and task.transform.is_identity
    logit_bytes = 4 + 4 * dense + 2 * (low and not in_place)
    if task.backend == "torch" and hidden_ND.device.type != "cpu":
        logit_bytes += DENSE_TEMPORARIES if dense else SPARSE_TEMPORARIES
    size = chunk_rows(num_rows, vocab_size, hidden_ND.device.type, logit_bytes)
    logits = torch.empty(size, vocab_size, **new)
    teacher_logits = torch.empty_like(logits) if dense else logits
    values = []
    for start in range(0, num_rows, size):
        chunk = slice(start, start + size)
        hidden_CD = hidden_ND[chunk]
        logits_CV = logits[: hidden_CD.shape[0]]
        project(hidden_CD, weight_VD, logits_CV)
        if left_NR is not None:
            logits_CV.addmm_(left_NR[chunk].float(), right_VR.float().t())
        if bias_V is not None:
            logits_CV.add_(bias_V)
        slope_CV = task.transform.apply_(logits_CV)
        scale_C = None if not any(wants) else scale.expand(num_rows)[chunk]
        grad_CV = narrow_view(logits_CV, hidden_CD.dtype) if in_place else logits_CV
        values.append(_rows(logits_CV, teacher_logits, grad_CV, chunk, task, scale_C))
        if scale_C is None:
            continue
        task.transform.backward_(grad_CV, slope_CV)
        if low:
            grad_CV = grad_CV.to(hidden_CD.dtype)
        if grad_hidden is not None:
            grad_hidden[chunk] = task.shard.sum(back_to_hidden(grad_CV, weight_VD))
        if grad_weight is not None:
            add_to_weight(grad_weight, grad_CV, hidden_CD, first=start == 0)
        if grad_bias is not None:
            of_chunk = grad_CV.sum(0, dtype=torch.float32)
            grad_bias.copy_(of_chunk if start == 0 else grad_bias + of_chunk)
        if grad_left is not None:
            grad_left[chunk] = task.shard.sum(back_to_hidden(grad_CV, right_VR))
        if grad_right is not None:
            add_to_weight(grad_right, grad_CV, left_NR[chunk], first=start == 0)
    grads = [grad_hidden, grad_weight, grad_bias, grad_left, grad_right]
    return _concatenate(values), grads


def narrow_view(logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, V] of a 2-byte type in the first half of each row of 4-byte logits."""
    return logits_CV.view(dtype)[:, : logits_CV.shape[1]]


def _rows(
    logits_CV: Tensor,
    teacher_logits: Tensor,
    grad_CV: Tensor,
    chunk: slice,
    task: Task,
    scale_C: Tensor | None,
) -> RowValues:
    teacher, labels_C, spec = task.teacher[chunk], task.labels[chunk], task.spec
    sparse = isinstance(teacher, SparseTeacher)
    if not sparse:
        teacher_logits = teacher_logits[: logits_CV.shape[0]]
        _fill_teacher(teacher, teacher_logits)
    if task.backend == "triton" and sparse:
        from distill_kernels.rows_triton import rows_triton

        return rows_triton(logits_CV, grad_CV, teacher, labels_C, spec, scale_C)
    if task.backend == "triton":
        from distill_kernels.rows_triton_dense import rows_triton_dense

        return rows_triton_dense(logits_CV, grad_CV, teacher_logits, labels_C, spec, scale_C)
    values = []
    for at in _blocks(logits_CV):
        scale = None if scale_C is None else scale_C[at]
        if sparse:
            row = rows_torch(logits_CV[at], teacher[at], labels_C[at], spec, scale, task.shard)
        else:
            row = rows_torch_dense(
                logits_CV[at], teacher_logits[at], labels_C[at], spec, scale, task.shard
            )
        values.append(row)
    return _concatenate(values)


def _blocks(logits_CV: Tensor) -> list[slice]:
    rows, size = logits_CV.shape
    step = rows
    if logits_CV.device.type == "cpu":
        step = max(1, BLOCK_BYTES // (4 * size))
    return [slice(at, at + step) for at in range(0, rows, step)]


def _fill_teacher(teacher: DenseLogits | DenseTeacher, out_CV: Tensor) -> None:
    """The teacher's logits over the student's ids; -inf where the teacher has no such id."""
    if isinstance(teacher, DenseLogits):
        shared = min(out_CV.shape[1], teacher.logits.shape[1])
        out_CV[:, :shared] = teacher.logits[:, :shared]
    else:
        shared = min(out_CV.shape[1], teacher.weight.shape[0])
        logits_CS = out_CV[:, :shared]
        project(teacher.hidden, teacher.weight[:shared], logits_CS)
        if teacher.bias is not None:
            logits_CS.add_(teacher.bias[:shared])
        teacher.logit_transform.apply_(logits_CS)
    out_CV[:, shared:] = -torch.inf


def _concatenate(values: list[RowValues]) -> RowValues:
    return RowValues(
        *(
            torch.cat([getattr(value, name) for value in values])
            for name in ("loss", "kd", "ce", "top1", "entropy")
        )
    )
