"""The public function: a linear output head and a distillation loss as one operation."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels import autograd
from distill_kernels.checks import check_shapes
from distill_kernels.matmul import TiledWeight, Weight
from distill_kernels.reference import distill_loss, head_mass, taught_rows
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.sweep import Inputs, Task
from distill_kernels.teacher import SparseTeacher, Teacher
from distill_kernels.transform import LogitTransform

Backend = Literal["auto", "reference", "torch", "triton"]


@dataclass(frozen=True)
class LowRank:
    """A low-rank term of the head, such as LoRA's: left @ right.T is added to the product.

    left   [N, r], of the same rows as hidden; for LoRA: scaling * dropout(hidden) @ A.T
    right  [V, r]; for LoRA: B

    Both get gradients, so A is reached through `left`.
    """

    left: Tensor
    right: Tensor


def fused_linear_distill(
    hidden: Tensor,
    weight: Weight,
    teacher: Teacher,
    labels: Tensor,
    *,
    spec: DistillSpec,
    bias: Tensor | None = None,
    low_rank: LowRank | None = None,
    logit_transform: LogitTransform | None = None,
    shard: VocabShard = WHOLE,
    backend: Backend = "auto",
) -> DistillOutput:
    """Distillation loss of a linear output head; `spec` states the equation.

        logits = logit_transform(hidden @ weight.T + low_rank + bias)    never held for all N rows

    hidden  [N, D] fp32, bf16 or fp16          labels  int64 [N]: the token that row n predicts,
    weight  [V, D], bias [V] or None                   -100 = the row counts for nothing
    weight may be a TiledWeight (quantised, frozen); with a `shard` it is this process's part of V
    teacher row n describes the same token as labels[n]: SparseTeacher, DenseTeacher, DenseLogits

    Products accumulate in fp32, and softmaxes, divergences and the weight's gradient are fp32,
    whatever the inputs are. Under autocast, hidden and weight are cast as a Linear would cast
    them. Weight and bias get no gradient work when they need none. Gradients are made in the
    forward pass; only for reduction "none" the backward pass computes the logits again.
    Peak extra memory: a chunk of logits, and the fp32 gradient of a trained weight.

    backend  "torch" anywhere; "triton" on CUDA, or on a CPU under TRITON_INTERPRET=1;
             "reference" materialises the logits (`distill_loss`); "auto" picks triton on CUDA.
             A shard takes the torch backend.

    Raises ValueError when shapes, ids, teacher or backend do not fit.
    """
    _check_head(hidden, weight, bias, low_rank)
    check_shapes(hidden.shape[0], teacher, labels, spec)
    transform = logit_transform or LogitTransform()
    backend = _resolve(backend, hidden.device, weight, teacher, spec, shard)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype) if isinstance(weight, Tensor) else weight
    left, right = (None, None) if low_rank is None else (low_rank.left, low_rank.right)
    with torch.autocast(hidden.device.type, enabled=False):
        # Of no rows there is nothing to fuse.
        empty = hidden.shape[0] == 0 and isinstance(weight, Tensor)
        if backend == "reference" or empty:
            wide = torch.promote_types(hidden.dtype, torch.float32)
            head = F.linear(hidden.to(wide), weight.to(wide))
            if left is not None:
                head = head + left.to(wide) @ right.to(wide).t()
            if bias is not None:
                head = head + bias
            return distill_loss(transform(head), teacher, labels, spec=spec)
        task = Task(teacher, labels, spec, transform, backend, shard)
        values = autograd.run(Inputs(hidden, weight, bias, left, right), task)
        taught = taught_rows(teacher, labels)
        return DistillOutput(
            loss=values.loss,
            kd=values.kd.sum(),
            ce=values.ce.sum(),
            num_tokens=(labels != IGNORE).sum(),
            num_teacher_tokens=taught.sum(),
            teacher_mass=(head_mass(teacher) * taught).sum(),
            top1_agreement=values.top1.sum(),
            entropy=values.entropy.sum(),
        )


def _check_head(
    hidden: Tensor, weight: Weight, bias: Tensor | None, low_rank: LowRank | None
) -> None:
    if hidden.dim() != 2 or len(weight.shape) != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected [N, D] "
            "and [V, D]"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias {tuple(bias.shape)}: expected [{weight.shape[0]}]")
    if low_rank is not None:
        left, right = low_rank.left, low_rank.right
        rank = left.shape[-1]
        if left.shape != (hidden.shape[0], rank) or right.shape != (weight.shape[0], rank):
            raise ValueError(
                f"low_rank left {tuple(left.shape)} and right {tuple(right.shape)}: expected "
                f"[{hidden.shape[0]}, r] and [{weight.shape[0]}, r]"
            )


def _resolve(
    backend: str,
    device: torch.device,
    weight: Weight,
    teacher: Teacher,
    spec: DistillSpec,
    shard: VocabShard,
) -> str:
    """The backend to use. Raises ValueError where the one asked for cannot do what is asked."""
    if backend not in ("auto", "reference", "torch", "triton"):
        raise ValueError(f"backend={backend!r}: expected auto, reference, torch or triton")
    sharded = shard.group is not None
    if sharded and backend in ("reference", "triton"):
        raise ValueError(f"backend={backend!r} cannot reduce over a shard's group; use torch")
    if sharded and spec.divergence == "adaptive_kl" and not isinstance(teacher, SparseTeacher):
        raise ValueError(
            "divergence='adaptive_kl' ranks the teacher's whole vocabulary and cannot be had from "
            "a shard of a dense teacher; use a SparseTeacher or another divergence"
        )
    if backend == "reference" and isinstance(weight, TiledWeight):
        raise ValueError("backend='reference' needs the weight as floats; use torch or triton")
    if backend == "auto":
        return "triton" if device.type == "cuda" and not sharded else "torch"
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend='triton' on {device.type}: it needs a CUDA device, or the interpreter "
            "(TRITON_INTERPRET=1 before triton is imported). Use backend='torch' here."
        )
    return backend
