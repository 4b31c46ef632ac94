"""The public function: a linear output head and a distillation loss as one operation."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels import autograd, backends
from distill_kernels.backends import Backend
from distill_kernels.backends.reference import distill_loss, teacher_logits
from distill_kernels.checks import check_devices, check_head, check_shapes
from distill_kernels.chunk import RowValues
from distill_kernels.graph import run_in_graph
from distill_kernels.matmul import Weight
from distill_kernels.reduction import denominator, row_weights, weighted
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.task import Inputs, Task
from distill_kernels.teacher import (
    DenseLogits,
    SparseTeacher,
    Teacher,
    dense_size,
    head_mass,
    taught_rows,
)
from distill_kernels.transform import LogitTransform

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
    weight may be a TiledWeight (quantised, frozen); with a `shard` it is this process's part of V,
           as are bias, low_rank.right and a dense teacher (VocabShard)
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
             A shard takes torch, or reference, where every member holds all logits.

    Raises ValueError when shapes, types, devices, ids, weights, teacher or backend do not fit.
    """
    left, right = (None, None) if low_rank is None else (low_rank.left, low_rank.right)
    inputs = Inputs(hidden, weight, bias, left, right)
    task = Task(
        teacher=teacher,
        labels=labels,
        spec=spec,
        transform=logit_transform or LogitTransform(),
        backend=backend,
        weights=weights,
        shard=shard,
    )
    check_head(inputs)
    check_shapes(hidden.shape[0], teacher, labels, spec, weights)
    check_devices(inputs, task)
    task = replace(task, backend=backends.choose(inputs, task))
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        inputs = inputs._replace(hidden=hidden.to(dtype))
        if isinstance(weight, Tensor):
            inputs = inputs._replace(weight=weight.to(dtype))
    with torch.autocast(hidden.device.type, enabled=False):
        if task.backend == "reference":
            return _materialised(inputs, task)
        if inputs.hidden.dtype not in FUSED_TYPES:
            raise ValueError(
                f"hidden of {inputs.hidden.dtype}: expected float32, bfloat16 or float16; "
                "backend='reference' computes in float64"
            )
        values = _fused(inputs, task)
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


def _fused(inputs: Inputs, task: Task) -> RowValues:
    """Values of the rows; `loss` is w_n l_n or, for the other reductions, its sum.

    Within the sweep the largest weight is 1, for the sake of low gradients.
    """
    each, weights, largest = task.spec.reduction == "none", task.weights, None
    if weights is not None:
        weights = row_weights(task.labels, weights).float()
        if not each and weights.numel():
            largest = weights.max().clamp_min(torch.finfo(torch.float32).tiny)
    task = replace(
        task,
        spec=task.spec if each else replace(task.spec, reduction="sum"),
        weights=None if weights is None or largest is None else weights / largest,
    )
    grad = torch.is_grad_enabled()
    wants = tuple(grad and x is not None and x.requires_grad for x in inputs)
    compiled = torch.compiler.is_compiling()
    if compiled and task.shard.group is not None:
        raise ValueError(
            "a VocabShard's group cannot be part of a graph of torch.compile; call "
            "fused_linear_distill outside of it (torch.compiler.disable)"
        )
    run = run_in_graph if compiled else autograd.run
    values = run(inputs, task, wants)
    if largest is not None:
        values.loss = values.loss * largest
    elif each and weights is not None:
        values.loss = weighted(values.loss, weights)
    return values


def _materialised(inputs: Inputs, task: Task) -> DistillOutput:
    """Of a shard, every member gathers the others' logits and computes the whole loss."""
    hidden, weight, bias, left, right = inputs
    assert isinstance(weight, Tensor)  # `choose` refuses others
    wide = torch.promote_types(hidden.dtype, torch.float32)
    teacher, shard, size = task.teacher, task.shard, weight.shape[0]
    extent = shard.extent(size, hidden.shape[0], hidden.device, dense_size(teacher))
    if shard.group is not None:
        hidden = shard.summed_backward(hidden)
        left = left if left is None else shard.summed_backward(left)
        if not isinstance(teacher, SparseTeacher):
            logits = teacher_logits(teacher, size, wide)
            teacher = DenseLogits(shard.gather(logits, extent))
    logits = F.linear(hidden.to(wide), weight.to(wide))
    if left is not None and right is not None:
        logits = logits + left.to(wide) @ right.to(wide).t()
    if bias is not None:
        logits = logits + bias
    logits = shard.gather(task.transform(logits), extent)
    return distill_loss(logits, teacher, task.labels, spec=task.spec, weights=task.weights)
