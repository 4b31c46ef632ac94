"""The backend `triton`: the row math as one kernel, a program a row."""

import torch
from torch import Tensor

from distill_kernels.backends.triton_rows.dense import dense_rows
from distill_kernels.backends.triton_rows.sparse import sparse_rows
from distill_kernels.chunk import Chunk, RowValues, narrow_view
from distill_kernels.task import Task
from distill_kernels.teacher import SparseTeacher


def rows(chunk: Chunk) -> tuple[RowValues, Tensor | None]:
    """See RowBackend; a gradient of a low type is written over the logits: half as many bytes to
    write, and no copy to make for the products that follow."""
    grad_CV = chunk.logits_CV
    if chunk.grad_dtype != grad_CV.dtype:
        grad_CV = narrow_view(grad_CV, chunk.grad_dtype)
    if isinstance(chunk.teacher, SparseTeacher):
        values = sparse_rows(chunk, chunk.teacher, grad_CV)
    else:
        values = dense_rows(chunk, chunk.teacher.logits, grad_CV)
    return values, None if chunk.scale_C is None else grad_CV


def temporary_bytes(task: Task, device: torch.device, grad_dtype: torch.dtype) -> int:
    """See RowBackend; the transform is applied on the way in."""
    return 0
