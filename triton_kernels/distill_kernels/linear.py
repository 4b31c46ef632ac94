"""The public function: a linear output head and a distillation loss as one operation."""

import os
import warnings
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels import autograd
from distill_kernels.checks import check_shapes
from distill_kernels.graph import run_in_graph
from distill_kernels.matmul import TiledWeight, Weight
from distill_kernels.reference import (
    denominator,
    distill_loss,
    head_mass,
    row_weights,
    taught_rows,
    weighted,
)
from distill_kernels.rows_torch import RowValues
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.sweep import Inputs, Task
from distill_kernels.teacher import SparseTeacher, Teacher
from distill_kernels.transform import LogitTransform

Backend = Literal["auto", "reference", "torch", "triton"]
FUSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRank | None = None,
    logit_transform: LogitTransform | None = None,
    shard: VocabShard = WHOLE,
    backend: Backend = "auto",
) -> DistillOutput:
    """Distillation loss of a linear output head; `spec` states the loss l_n of a row.

        logits = logit_transform(hidden @ weight.T + low_rank + bias)    never held for all N rows
        "mean"   loss = sum_n w_n l_n / sum_n w_n        over the rows with a label
        "sum"    loss = sum_n w_n l_n
        "none"   loss = w_n l_n, [N]

    hidden   [N, D] fp32, bf16 or fp16         labels  int64 [N]: the token that row n predicts,
    weight   [V, D], bias [V] or None                  -100 = the row counts for nothing
    weights  [N] w >= 0 without a gradient, or None = 1 everywhere; the loss of no rows is 0
    weight may be a TiledWeight (quantised, frozen); with a `shard` it is this process's part of V
    teacher row n describes the same token as labels[n]: SparseTeacher, DenseTeacher, DenseLogits

    Products accumulate in fp32, and softmaxes, divergences and the weight's gradient are fp32,
    whatever the inputs are. Under autocast, hidden and weight are cast as a Linear would cast
    them. What needs no gradient gets no gradient work, and under no_grad or inference_mode nothing
    does. Gradients are made in the forward pass; only for reduction "none" the backward pass
    computes the logits again. A factor on the loss, 1/N or a gradient scaler's, is applied after
    the products, in fp32.

    Peak extra memory: a chunk of logits (sweep.CHUNK_BYTES, twice that with a trained head); the
    fp32 gradient of a trained weight, 4 V D bytes, and in the backward pass its copy in the
    weight's type. A dense teacher's logits are within the chunk.

    backend  "torch" anywhere; "triton" on CUDA, or on a CPU under TRITON_INTERPRET=1;
             "reference" materialises the logits (`distill_loss`); "auto" picks triton on CUDA,
             and torch, with a warning, where the package triton is not installed.
             A shard takes the torch backend.

    Raises ValueError when shapes, types, devices, ids, weights, teacher or backend do not fit.
    """
    _check_head(hidden, weight, bias, low_rank)
    check_shapes(hidden.shape[0], teacher, labels, spec, weights)
    _check_devices(hidden, weight, bias, low_rank, teacher, labels, weights)
    transform = logit_transform or LogitTransform()
    backend = _resolve(backend, hidden.device, weight, teacher, spec, shard)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden = hidden.to(dtype)
        weight = weight.to(dtype) if isinstance(weight, Tensor) else weight
    left, right = (None, None) if low_rank is None else (low_rank.left, low_rank.right)
    with torch.autocast(hidden.device.type, enabled=False):
        if backend == "reference":
            wide = torch.promote_types(hidden.dtype, torch.float32)
            head = F.linear(hidden.to(wide), weight.to(wide))
            if left is not None:
                head = head + left.to(wide) @ right.to(wide).t()
            if bias is not None:
                head = head + bias
            return distill_loss(transform(head), teacher, labels, spec=spec, weights=weights)
        if hidden.dtype not in FUSED_TYPES:
            raise ValueError(
                f"hidden of {hidden.dtype}: expected float32, bfloat16 or float16; "
                "backend='reference' computes in float64"
            )
        w_N = None if weights is None else row_weights(labels, weights).float()
        values = _fused(
            Inputs(hidden, weight, bias, left, right),
            teacher,
            labels,
            spec,
            transform,
            backend,
            shard,
            w_N,
        )
        loss = values.loss
        if spec.reduction == "mean":
            loss = loss / denominator(labels, weights)
        taught = taught_rows(teacher, labels)
        return DistillOutput(
            loss=loss,
            kd=values.kd.sum(),
            ce=values.ce.sum(),
            num_tokens=(labels != IGNORE).sum(),
            num_teacher_tokens=taught.sum(),
            teacher_mass=(head_mass(teacher) * taught).sum(),
            top1_agreement=values.top1.sum(),
            entropy=values.entropy.sum(),
        )


def _fused(
    inputs: Inputs,
    teacher: Teacher,
    labels: Tensor,
    spec: DistillSpec,
    transform: LogitTransform,
    backend: str,
    shard: VocabShard,
    weights: Tensor | None,
) -> RowValues:
    """Values of the rows; `loss` is w_n l_n or, for the other reductions, its sum.

    Within the sweep the largest weight is 1, for the sake of low gradients.
    """
    each = spec.reduction == "none"
    largest = None
    if weights is not None and not each and weights.numel():
        largest = weights.max().clamp_min(torch.finfo(torch.float32).tiny)
    spec = spec if each else replace(spec, reduction="sum")
    scale = None if largest is None else weights / largest
    task = Task(teacher, labels, spec, transform, backend, scale, shard)
    grad = torch.is_grad_enabled()
    wants = tuple(grad and x is not None and x.requires_grad for x in inputs)
    run = run_in_graph if torch.compiler.is_compiling() else autograd.run
    values = run(inputs, task, wants)
    if largest is not None:
        values.loss = values.loss * largest
    elif each and weights is not None:
        values.loss = weighted(values.loss, weights)
    return values


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


def _check_devices(
    hidden: Tensor,
    weight: Weight,
    bias: Tensor | None,
    low_rank: LowRank | None,
    teacher: Teacher,
    labels: Tensor,
    weights: Tensor | None,
) -> None:
    tensors = {"labels": labels, "weights": weights, "bias": bias}
    tensors["weight"] = weight if isinstance(weight, Tensor) else None
    for owner, of in (("low_rank", low_rank), ("teacher", teacher)):
        if of is not None:
            tensors |= {f"{owner}.{field.name}": getattr(of, field.name) for field in fields(of)}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.device != hidden.device:
            raise ValueError(
                f"{name} is on {tensor.device}, hidden on {hidden.device}: bring them to one device"
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
        if device.type != "cuda" or sharded:
            return "torch"
        missing = _missing_triton()
        if missing:
            warnings.warn(
                f"distill_kernels: {missing} The torch backend is used instead; it is slower.",
                stacklevel=3,
            )
        return "torch" if missing else "triton"
    if backend == "triton":
        missing = _missing_triton()
        if missing:
            raise ValueError(f"backend='triton': {missing} Or use backend='torch'.")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"backend='triton' on {device.type}: it needs a CUDA device, or the interpreter "
                "(TRITON_INTERPRET=1 before triton is imported). Use backend='torch' here."
            )
    return backend


def _missing_triton() -> str:
    """Why Triton cannot be used and what to do; empty where it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return (
            f"the package triton cannot be imported ({error}): "
            "pip install 'axolotl-distill[triton]' (Linux)."
        )
    return ""
