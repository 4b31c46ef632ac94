"""Chunks of rows through one reused buffer: logits, row math, products of the gradient."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from distill_kernels import backends
from distill_kernels.checks import check_values
from distill_kernels.chunk import Chunk, RowValues, buffer, concatenate, padded
from distill_kernels.matmul import add_to_weight, back_to_hidden, project
from distill_kernels.shard import Extent, VocabShard
from distill_kernels.task import ROWS, Inputs, Task
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher, dense_size

CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 1280 << 20}
"""What is held at once for every logit of a chunk, with the head frozen; twice this with the head
trained, since every chunk then reads and writes the weight's fp32 gradient once (ADR 9)."""
CHUNK_ROWS, WAVE_ROWS, STEP_ROWS = 2048, 1024, 16
"""Rows of a chunk with the head frozen: more gain nothing. Chunks that can are whole multiples of
WAVE_ROWS, with which the product back to hidden fills the device; the others, of STEP_ROWS, so that
every chunk begins at an aligned address."""
MIN_ROWS = 32


def sweep(
    inputs: Inputs, task: Task, scale: Tensor | None, wants: tuple[bool, ...]
) -> tuple[RowValues, list[Tensor | None]]:
    """(values of every row, gradients of `inputs`).

    scale  d(what is differentiated) / d(loss of a row), [N], or None with no `wants`. Its largest
           should be about 1: the gradient of the logits is rounded to hidden's type with it
    wants  which of `inputs` get a gradient; the weight's, the bias's and right's are fp32
    """
    assert scale is not None or not any(wants)
    device, grad_dtype = inputs.hidden.device, gradient_dtype(inputs.hidden)
    with _on(device):
        num_rows, vocab_size = inputs.hidden.shape[0], inputs.weight.shape[0]
        extent = task.shard.extent(vocab_size, num_rows, device, dense_size(task.teacher))
        check_values(extent.whole, task.teacher, task.labels, task.spec, task.weights)
        new = torch.empty_like if num_rows else torch.zeros_like
        grads = [
            new(x, dtype=x.dtype if i in ROWS else torch.float32)
            if wanted and isinstance(x, Tensor)
            else None
            for i, (x, wanted) in enumerate(zip(inputs, wants, strict=True))
        ]
        dense = not isinstance(task.teacher, SparseTeacher)
        backend = backends.row_backend(task.backend)
        of_a_logit = 4 + 4 * dense + backend.temporary_bytes(task, device, grad_dtype)
        size = chunk_rows(num_rows, extent.widest, of_a_logit, device, trained=wants[1])
        logits = buffer(size, vocab_size, device)
        teacher_logits = buffer(size, vocab_size, device) if dense else None
        found = []
        for start in range(0, num_rows, size):
            rows = slice(start, min(start + size, num_rows))
            here = slice(rows.stop - start)
            chunk = _chunk(
                inputs,
                task,
                extent,
                rows,
                logits[here],
                None if teacher_logits is None else teacher_logits[here],
                scale[rows] if scale is not None and any(wants) else None,
            )
            values, grad_CV = backend.rows(chunk)
            found.append(values)
            if grad_CV is not None:
                _add(grads, grad_CV, inputs, rows, task.shard)
            del chunk, grad_CV  # before the next ones are made
        return concatenate(found, device), grads


def chunk_rows(
    num_rows: int, vocab_size: int, of_a_logit: int, device: torch.device, *, trained: bool
) -> int:
    """Rows of a chunk; of_a_logit: bytes held at once for every row and id of it."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    most = min(CHUNK_ROWS, budget // (of_a_logit * padded(vocab_size))) * (2 if trained else 1)
    step = WAVE_ROWS if most >= WAVE_ROWS else STEP_ROWS
    return max(1, min(num_rows, max(MIN_ROWS, most // step * step)))


def gradient_dtype(hidden: Tensor) -> torch.dtype:
    """Of d loss / d logits: a low one doubles the speed of its products on a GPU only."""
    return hidden.dtype if hidden.is_cuda else torch.float32


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels are launched on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _chunk(
    inputs: Inputs,
    task: Task,
    extent: Extent,
    rows: slice,
    logits_CV: Tensor,
    teacher_CV: Tensor | None,
    scale_C: Tensor | None,
) -> Chunk:
    """The chunk of these rows, its logits in logits_CV and a dense teacher's in teacher_CV."""
    project(inputs.hidden[rows], inputs.weight, logits_CV)
    if inputs.left is not None and inputs.right is not None:
        logits_CV.addmm_(inputs.left[rows].float(), inputs.right.float().t())
    teacher = task.teacher[rows]
    if not isinstance(teacher, SparseTeacher):
        assert teacher_CV is not None
        _fill_teacher(teacher, teacher_CV)
        teacher = DenseLogits(teacher_CV)
    return Chunk(
        logits_CV=logits_CV,
        bias_V=inputs.bias,
        transform=task.transform,
        teacher=teacher,
        labels_C=task.labels[rows],
        spec=task.spec,
        scale_C=scale_C,
        grad_dtype=gradient_dtype(inputs.hidden),
        shard=task.shard,
        of_group=extent,
    )


def _add(
    grads: list[Tensor | None], grad_CV: Tensor, inputs: Inputs, rows: slice, shard: VocabShard
) -> None:
    """Adds the chunk's part, grad_CV = d loss / d product of these rows, to the gradients."""
    first = rows.start == 0
    left, right = inputs.left, inputs.right
    grad_hidden, grad_weight, grad_bias, grad_left, grad_right = grads
    if grad_hidden is not None:
        grad_hidden[rows] = shard.sum(back_to_hidden(grad_CV, inputs.weight))
    if grad_weight is not None:
        add_to_weight(grad_weight, grad_CV, inputs.hidden[rows], first=first)
    if grad_bias is not None:
        of_chunk = grad_CV.sum(0, dtype=torch.float32)
        grad_bias.copy_(of_chunk if first else grad_bias + of_chunk)
    if grad_left is not None and right is not None:
        grad_left[rows] = shard.sum(back_to_hidden(grad_CV, right))
    if grad_right is not None and left is not None:
        add_to_weight(grad_right, grad_CV, left[rows], first=first)


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
