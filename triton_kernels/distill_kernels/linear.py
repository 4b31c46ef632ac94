"""Hidden states to loss without the [N, V] logits: chunks of rows through one reused buffer."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels.matmul import add_to_weight, back_to_hidden, project
from distill_kernels.reference import check_inputs, distill_loss, head_mass
from distill_kernels.rows_torch import rows_torch
from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.teacher import SparseTeacher
from distill_kernels.transform import LogitTransform

Backend = Literal["auto", "reference", "torch", "triton"]

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
MIN_ROWS = 32


def fused_linear_distill(
    hidden: Tensor,
    weight: Tensor,
    teacher: SparseTeacher,
    labels: Tensor,
    *,
    spec: DistillSpec,
    bias: Tensor | None = None,
    logit_transform: LogitTransform | None = None,
    backend: Backend = "auto",
) -> DistillOutput:
    """Distillation loss of a linear output head; `spec` states the equation.

        logits = logit_transform(hidden @ weight.T + bias)          never held for all N rows

    hidden  [N, D] fp32, bf16 or fp16          labels  int64 [N]: the token that row n predicts,
    weight  [V, D], bias [V] or None                   -100 = the row counts for nothing
    teacher row n describes the same token as labels[n]

    Products accumulate in fp32, and softmaxes, divergences and the weight's gradient are fp32,
    whatever the inputs are. Under autocast, hidden and weight are cast as a Linear would cast
    them. Gradients are made in the forward pass; weight and bias get none when they need none.
    Peak extra memory: a chunk of logits, and the fp32 gradient of a trained weight.

    backend  "torch" anywhere; "triton" on CUDA, or on a CPU under TRITON_INTERPRET=1;
             "reference" materialises the logits (`distill_loss`); "auto" picks triton on CUDA.

    Raises ValueError when shapes, teacher or backend do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected [N, D] "
            "and [V, D]"
        )
    check_inputs(hidden.shape[0], teacher, labels, spec)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    transform = logit_transform or LogitTransform()
    if backend == "auto":
        backend = "triton" if hidden.device.type == "cuda" else "torch"
    with torch.autocast(hidden.device.type, enabled=False):
        if backend == "reference":
            wide = torch.promote_types(hidden.dtype, torch.float32)
            head = F.linear(hidden.to(wide), weight.to(wide))
            if bias is not None:
                head = head + bias
            return distill_loss(transform(head), teacher, labels, spec=spec)
        rows = row_function(backend, hidden)
        loss, kd, ce, top1 = _FusedLinearDistill.apply(
            hidden, weight, bias, teacher, labels, spec, transform, rows
        )
    labelled = labels != IGNORE
    taught = labelled & (teacher.ids >= 0).any(-1)
    return DistillOutput(
        loss=loss,
        kd=kd,
        ce=ce,
        num_tokens=labelled.sum(),
        num_teacher_tokens=taught.sum(),
        teacher_mass=(head_mass(teacher) * taught).sum(),
        top1_agreement=top1,
    )


def row_function(backend: str, hidden: Tensor) -> Any:
    """The function that turns a chunk of logits into gradients, for one backend."""
    if backend == "torch":
        return rows_torch
    if backend == "triton":
        from distill_kernels.rows_triton import check_device, rows_triton

        check_device(hidden.device)
        return rows_triton
    raise ValueError(f"backend={backend!r}: expected auto, reference, torch or triton")


def chunk_rows(num_rows: int, vocab_size: int, device_type: str) -> int:
    """Rows of a chunk: as many fp32 logits as the budget holds, in chunks of about equal size."""
    budget = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cuda"])
    most = max(MIN_ROWS, budget // (4 * vocab_size))
    return max(1, math.ceil(num_rows / max(1, math.ceil(num_rows / most))))


class _FusedLinearDistill(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        teacher: SparseTeacher,
        labels_N: Tensor,
        spec: DistillSpec,
        transform: LogitTransform,
        rows: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        with_grad = wants_hidden or wants_weight or wants_bias
        (num_rows, dim), vocab_size = hidden_ND.shape, weight_VD.shape[0]
        new = dict(dtype=torch.float32, device=hidden_ND.device)
        scale = torch.ones((), **new)
        if spec.reduction == "mean":
            scale = 1.0 / (labels_N != IGNORE).sum().clamp_min(1).float()
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros(vocab_size, dim, **new) if wants_weight else None
        grad_bias = torch.zeros(vocab_size, **new) if wants_bias else None
        sums = torch.zeros(4, **new)

        size = chunk_rows(num_rows, vocab_size, hidden_ND.device.type)
        buffer = torch.empty(size, vocab_size, **new)
        for start in range(0, num_rows, size):
            chunk = slice(start, start + size)
            hidden_CD = hidden_ND[chunk]
            logits_CV = buffer[: hidden_CD.shape[0]]
            project(hidden_CD, weight_VD, logits_CV)
            if bias_V is not None:
                logits_CV.add_(bias_V)
            slope_CV = transform.apply_(logits_CV)
            row = rows(logits_CV, teacher[chunk], labels_N[chunk], spec, with_grad)
            sums += torch.stack([row.loss.sum(), row.kd.sum(), row.ce.sum(), row.top1.sum()])
            if not with_grad:
                continue
            transform.backward_(logits_CV, slope_CV)
            logits_CV.mul_(scale)
            if grad_hidden is not None:
                grad_hidden[chunk] = back_to_hidden(logits_CV, weight_VD)
            if grad_weight is not None:
                add_to_weight(grad_weight, logits_CV, hidden_CD)
            if grad_bias is not None:
                grad_bias += logits_CV.sum(0)

        ctx.dtypes = (weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.spent = False
        loss, kd, ce, top1 = sums.unbind()
        ctx.mark_non_differentiable(kd, ce, top1)
        return loss * scale, kd, ce, top1

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.spent:
            raise RuntimeError(
                "fused_linear_distill can be differentiated once: its gradients are scaled in "
                "place. Call it again instead of using retain_graph."
            )
        ctx.spent = True
        grads = [g if g is None else g.mul_(grad_loss) for g in ctx.saved_tensors]
        grad_hidden, grad_weight, grad_bias = grads
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_dtype),
            None if grad_bias is None else grad_bias.to(bias_dtype),
            *[None] * 5,
        )
