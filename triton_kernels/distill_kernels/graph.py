"""The sweep as custom operators: torch.compile sees one node and does not look inside.

An operator takes tensors and numbers only, so the task is taken apart here and put together again
on the other side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill_kernels.autograd import backward, forward
from distill_kernels.rows_torch import RowValues
from distill_kernels.spec import DistillSpec
from distill_kernels.sweep import ROWS, Inputs, Task
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher, Teacher
from distill_kernels.transform import LogitTransform

TEACHERS = {"sparse": SparseTeacher, "logits": DenseLogits, "dense": DenseTeacher}


def run_in_graph(inputs: Inputs, task: Task, wants: tuple[bool, ...]) -> RowValues:
    """As autograd.run, within torch.compile. The head must be whole and held as floats."""
    spec = task.spec
    kind, tensors, transform = _take_apart(task.teacher)
    numbers = [
        spec.temperature,
        spec.alpha,
        spec.beta,
        spec.skew,
        spec.akl_mu,
        spec.label_smoothing,
        task.transform.scale,
        task.transform.softcap or 0.0,
        transform.scale,
        transform.softcap or 0.0,
    ]
    names = [spec.divergence, spec.support, spec.reduction, task.backend, kind]
    names = " ".join(names)
    out = _forward(*inputs, task.labels, task.weights, tensors, names, numbers, list(wants))
    return RowValues(*out[:5])


@torch.library.custom_op("distill_kernels::forward", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    teacher: Sequence[Tensor | None],
    names: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
) -> list[Tensor]:
    """[loss, kd, ce, top1, entropy, five gradients]; one that is not wanted is empty."""
    inputs = Inputs(hidden, weight, bias, left, right)
    task = _put_together(labels, weights, teacher, names, numbers)
    values, grads = forward(inputs, task, tuple(wants))
    grads = [hidden.new_empty(0) if g is None else g for g in grads]
    return [values.loss, values.kd, values.ce, values.top1, values.entropy, *grads]


@_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    teacher: Sequence[Tensor | None],
    names: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
) -> list[Tensor]:
    per_row = names.split()[2] == "none"
    rows = [hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(5)]
    loss = rows[0] if per_row else hidden.new_empty((), dtype=torch.float32)
    grads = [
        _like(x, row=i in ROWS) if want and not per_row else hidden.new_empty(0)
        for i, (x, want) in enumerate(zip((hidden, weight, bias, left, right), wants, strict=True))
    ]
    return [loss, *rows[1:], *grads]


@torch.library.custom_op("distill_kernels::backward", mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    teacher: Sequence[Tensor | None],
    names: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
    grad_loss: Tensor,
) -> list[Tensor]:
    """The five gradients for reduction "none"."""
    inputs = Inputs(hidden, weight, bias, left, right)
    task = _put_together(labels, weights, teacher, names, numbers)
    grads = backward(inputs, task, tuple(wants), grad_loss)
    return [hidden.new_empty(0) if g is None else g for g in grads]


@_backward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    teacher: Sequence[Tensor | None],
    names: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
    grad_loss: Tensor,
) -> list[Tensor]:
    return [
        torch.empty_like(x) if want else hidden.new_empty(0)
        for x, want in zip((hidden, weight, bias, left, right), wants, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, labels, weights, teacher, names, numbers, wants = inputs
    ctx.settings = (names, numbers, wants)
    ctx.dtypes = [None if x is None else x.dtype for x in tensors]
    if names.split()[2] == "none":
        ctx.save_for_backward(*tensors, labels, weights, *teacher)
    else:
        ctx.save_for_backward(*output[5:])


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    names, numbers, wants = ctx.settings
    if names.split()[2] == "none":
        *tensors, labels, weights = ctx.saved_tensors[:7]
        teacher = ctx.saved_tensors[7:]
        found = _backward(*tensors, labels, weights, teacher, names, numbers, wants, grads[0])
    else:
        found = [
            (g * grads[0]).to(dtype) if want else None
            for g, dtype, want in zip(ctx.saved_tensors, ctx.dtypes, wants, strict=True)
        ]
    return *(g if want else None for g, want in zip(found, wants, strict=True)), *[None] * 6


_forward.register_autograd(_differentiate, setup_context=_save)


def _like(x: Tensor, *, row: bool) -> Tensor:
    return torch.empty_like(x) if row else torch.empty_like(x, dtype=torch.float32)


def _take_apart(teacher: Teacher) -> tuple[str, list[Tensor | None], LogitTransform]:
    if isinstance(teacher, SparseTeacher):
        tensors = [teacher.ids, teacher.logprobs, teacher.tail_logprob, teacher.entropy]
        return "sparse", tensors, LogitTransform()
    if isinstance(teacher, DenseLogits):
        return "logits", [teacher.logits], LogitTransform()
    return "dense", [teacher.hidden, teacher.weight, teacher.bias], teacher.logit_transform


def _put_together(
    labels: Tensor,
    weights: Tensor | None,
    tensors: Sequence[Tensor | None],
    names: str,
    numbers: Sequence[float],
) -> Task:
    divergence, support, reduction, backend, kind = names.split()
    temperature, alpha, beta, skew, akl_mu, smoothing, *transforms = numbers
    mine, theirs = (LogitTransform(s, c or None) for s, c in (transforms[:2], transforms[2:]))
    extra = {"logit_transform": theirs} if kind == "dense" else {}
    return Task(
        teacher=TEACHERS[kind](*tensors, **extra),
        labels=labels,
        spec=DistillSpec(
            divergence=divergence,
            temperature=temperature,
            alpha=alpha,
            beta=beta,
            skew=skew,
            akl_mu=akl_mu,
            label_smoothing=smoothing,
            support=support,
            reduction=reduction,
        ),
        transform=mine,
        backend=backend,
        weights=weights,
    )
