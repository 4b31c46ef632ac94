"""Chunks of rows through one reused buffer: logits, row math, products of the gradient."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels.checks import check_values
from distill_kernels.matmul import Weight, add_to_weight, back_to_hidden, project
from distill_kernels.rows_torch import RowValues, rows_torch, rows_torch_dense
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import DistillSpec
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher, Teacher
from distill_kernels.transform import LogitTransform

CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 1280 << 20}
"""What is held at once for every logit of a chunk, with the head frozen; twice this with the head
trained, since every chunk then reads and writes the weight's fp32 gradient once (ADR 9)."""
CHUNK_ROWS, WAVE_ROWS, STEP_ROWS = 2048, 1024, 16
"""Rows of a chunk with the head frozen: more gain nothing. Chunks that can are whole multiples of
WAVE_ROWS, with which the product back to hidden fills the device; the others, of STEP_ROWS, so that
every chunk begins at an aligned address."""
MIN_ROWS = 32
PADDING = 64
"""Rows of a buffer begin at multiples of this many logits, whatever the vocabulary is."""
BLOCK_BYTES = 2 << 20
"""Logits that the row math of the torch backend sweeps at once on a CPU: they stay in its cache."""
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
    """A loss to compute, without its inputs.

    spec     with reduction "sum" or "none"
    backend  "torch" or "triton"
    weights  fp32 [N], at most 1 each, 0 without a label: the factor of every row for "sum";
             None = 1
    """

    teacher: Teacher
    labels: Tensor
    spec: DistillSpec
    transform: LogitTransform
    backend: str
    weights: Tensor | None = None
    shard: VocabShard = WHOLE


def sweep(
    inputs: Inputs, task: Task, scale: Tensor | None, wants: tuple[bool, ...]
) -> tuple[RowValues, list[Tensor | None]]:
    """(values of every row, gradients of `inputs`).

    scale  d(what is differentiated) / d(loss of a row), [N], or None with no `wants`. Its largest
           should be about 1: the gradient of the logits is rounded to hidden's type with it
    wants  which of `inputs` get a gradient; the weight's, the bias's and right's are fp32
    """
    with _on(inputs.hidden.device):
        vocab_size = inputs.weight.shape[0]
        whole_size = task.shard.whole_size(vocab_size, inputs.hidden.device)
        check_values(whole_size, task.teacher, task.labels, task.spec, task.weights)
        num_rows = inputs.hidden.shape[0]
        new = torch.empty_like if num_rows else torch.zeros_like
        grads = [
            new(x, dtype=x.dtype if i in ROWS else torch.float32) if wanted else None
            for i, (x, wanted) in enumerate(zip(inputs, wants, strict=True))
        ]
        size = chunk_rows(num_rows, vocab_size, bytes_of_a_logit(inputs, task), inputs, wants[1])
        logits = buffer(size, vocab_size, inputs.hidden.device)
        dense = not isinstance(task.teacher, SparseTeacher)
        teacher_logits = buffer(size, vocab_size, inputs.hidden.device) if dense else logits
        if task.backend == "triton" and inputs.bias is not None:
            padding = logits.stride(0) - vocab_size
            inputs = inputs._replace(bias=F.pad(inputs.bias.float(), (0, padding)))
        values = [
            _chunk(
                inputs,
                task,
                slice(start, min(start + size, num_rows)),
                logits,
                teacher_logits,
                scale,
                grads,
            )
            for start in range(0, num_rows, size)
        ]
        return _concatenate(values, inputs.hidden.device), grads


def chunk_rows(
    num_rows: int, vocab_size: int, logit_bytes: int, inputs: Inputs, trained: bool
) -> int:
    """Rows of a chunk."""
    width = -(-vocab_size // PADDING) * PADDING
    budget = CHUNK_BYTES.get(inputs.hidden.device.type, CHUNK_BYTES["cuda"])
    most = min(CHUNK_ROWS, budget // (logit_bytes * width)) * (2 if trained else 1)
    step = WAVE_ROWS if most >= WAVE_ROWS else STEP_ROWS
    return max(1, min(num_rows, max(MIN_ROWS, most // step * step)))


def bytes_of_a_logit(inputs: Inputs, task: Task) -> int:
    """What is held at once for every row and id of a chunk: logits, the teacher's, and what the
    torch backend makes of them where it does not work in blocks.

    The Triton kernels apply the transform as they read, and write the gradient over the logits.
    """
    dense = not isinstance(task.teacher, SparseTeacher)
    held = 4 + 4 * dense
    if task.backend == "torch" and inputs.hidden.device.type != "cpu":
        held += DENSE_TEMPORARIES if dense else SPARSE_TEMPORARIES
        held += 4 * (task.transform.softcap is not None)
        held += 2 * (gradient_dtype(inputs.hidden) != torch.float32)
    return held


def buffer(rows: int, vocab_size: int, device: torch.device) -> Tensor:
    """fp32 [rows, V], uninitialised, whose rows begin at multiples of PADDING."""
    width = -(-vocab_size // PADDING) * PADDING
    return torch.empty(rows, width, dtype=torch.float32, device=device)[:, :vocab_size]


def narrow_view(logits_CV: Tensor, dtype: torch.dtype) -> Tensor:
    """[C, V] of a 2-byte type in the first half of each row of 4-byte logits."""
    return logits_CV.view(dtype)[:, : logits_CV.shape[1]]


def gradient_dtype(hidden: Tensor) -> torch.dtype:
    """Of d loss / d logits: a low one doubles the speed of its products on a GPU only."""
    return hidden.dtype if hidden.is_cuda else torch.float32


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are launched on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _chunk(
    inputs: Inputs,
    task: Task,
    chunk: slice,
    logits: Tensor,
    teacher_logits: Tensor,
    scale: Tensor | None,
    grads: list[Tensor | None],
) -> RowValues:
    """The values of a chunk's rows; its part of the gradients is added to `grads`."""
    hidden_CD, weight_VD, bias_V, left_NR, right_VR = inputs._replace(hidden=inputs.hidden[chunk])
    rows = hidden_CD.shape[0]
    logits_CV, teacher_CV = logits[:rows], teacher_logits[:rows]
    project(hidden_CD, weight_VD, logits_CV)
    if left_NR is not None:
        logits_CV.addmm_(left_NR[chunk].float(), right_VR.float().t())
    if not isinstance(task.teacher, SparseTeacher):
        _fill_teacher(task.teacher[chunk], teacher_CV)
    wanted = any(grad is not None for grad in grads)
    scale_C = scale[chunk] if wanted else None
    dtype = gradient_dtype(inputs.hidden)
    math = _rows_triton if task.backend == "triton" else _rows_torch
    values, grad_CV = math(logits_CV, teacher_CV, bias_V, chunk, task, scale_C, dtype)
    if not wanted:
        return values
    first = chunk.start == 0
    grad_hidden, grad_weight, grad_bias, grad_left, grad_right = grads
    if grad_hidden is not None:
        grad_hidden[chunk] = task.shard.sum(back_to_hidden(grad_CV, weight_VD))
    if grad_weight is not None:
        add_to_weight(grad_weight, grad_CV, hidden_CD, first=first)
    if grad_bias is not None:
        of_chunk = grad_CV.sum(0, dtype=torch.float32)
        grad_bias.copy_(of_chunk if first else grad_bias + of_chunk)
    if grad_left is not None:
        grad_left[chunk] = task.shard.sum(back_to_hidden(grad_CV, right_VR))
    if grad_right is not None:
        add_to_weight(grad_right, grad_CV, left_NR[chunk], first=first)
    return values


def _rows_triton(
    logits_CV: Tensor,
    teacher_CV: Tensor,
    bias_V: Tensor | None,
    chunk: slice,
    task: Task,
    scale_C: Tensor | None,
    dtype: torch.dtype,
) -> tuple[RowValues, Tensor]:
    """(values of the rows, d loss / d product over the logits, in `dtype`)."""
    from distill_kernels.rows_triton import rows_triton
    from distill_kernels.rows_triton_dense import rows_triton_dense

    grad_CV = logits_CV if dtype == torch.float32 else narrow_view(logits_CV, dtype)
    rest = (task.labels[chunk], task.spec, scale_C, task.transform, bias_V)
    if isinstance(task.teacher, SparseTeacher):
        return rows_triton(logits_CV, grad_CV, task.teacher[chunk], *rest), grad_CV
    return rows_triton_dense(logits_CV, grad_CV, teacher_CV, *rest), grad_CV


def _rows_torch(
    logits_CV: Tensor,
    teacher_CV: Tensor,
    bias_V: Tensor | None,
    chunk: slice,
    task: Task,
    scale_C: Tensor | None,
    dtype: torch.dtype,
) -> tuple[RowValues, Tensor]:
    """As _rows_triton; a low gradient is a copy."""
    teacher, labels_C = task.teacher[chunk], task.labels[chunk]
    step = logits_CV.shape[0]
    if logits_CV.device.type == "cpu":
        step = max(1, BLOCK_BYTES // (4 * logits_CV.shape[1]))
    values = []
    for start in range(0, logits_CV.shape[0], step):
        at = slice(start, start + step)
        block = logits_CV[at]
        if bias_V is not None:
            block.add_(bias_V)
        task.transform.apply_(block)
        scale = None if scale_C is None else scale_C[at]
        slope = None if scale is None else task.transform.slope(block)
        rest = (labels_C[at], task.spec, scale, task.shard)
        if isinstance(teacher, SparseTeacher):
            values.append(rows_torch(block, teacher[at], *rest))
        else:
            values.append(rows_torch_dense(block, teacher_CV[at], *rest))
        if scale is not None:
            task.transform.backward_(block, slope)
    return _concatenate(values, logits_CV.device), logits_CV.to(dtype)


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


def _concatenate(values: list[RowValues], device: torch.device) -> RowValues:
    if not values:
        return RowValues(*torch.zeros(5, 0, device=device))
    return RowValues(
        *(
            torch.cat([getattr(value, name) for value in values])
            for name in ("loss", "kd", "ce", "top1", "entropy")
        )
    )
