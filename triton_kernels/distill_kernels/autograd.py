"""The sweep as a differentiable operation.

For "sum" the gradient is made in the forward pass and scaled in the backward one, in fp32 and
after its products: a factor such as 1/N would sink small slopes below what fp16 can tell from 0.
For "none" the backward pass sweeps again, since the weight's gradient needs every row's own factor.
"""

from typing import Any

import torch
from torch import Tensor

from distill_kernels.chunk import RowValues
from distill_kernels.reduction import weighted
from distill_kernels.sweep import sweep
from distill_kernels.task import Inputs, Task


def run(inputs: Inputs, task: Task, wants: tuple[bool, ...]) -> RowValues:
    """Values of the rows; `loss` is reduced and differentiable with respect to `inputs`.

    wants  which of them get a gradient, settled outside: inside an autograd.Function a parameter
           counts as wanting one even under no_grad
    """
    if any(wants):
        return RowValues(*_Sweep.apply(task, wants, *inputs))
    with torch.no_grad():
        return forward(inputs, task, wants)[0]


def forward(
    inputs: Inputs, task: Task, wants: tuple[bool, ...]
) -> tuple[RowValues, list[Tensor | None]]:
    """(values, `loss` being the sum for "sum"; gradients of that sum, none for "none")."""
    if task.spec.reduction == "none":
        return sweep(inputs, task, None, (False,) * len(inputs))
    scale = task.weights
    if scale is None and any(wants):
        scale = torch.ones(inputs.hidden.shape[0], device=inputs.hidden.device)
    values, grads = sweep(inputs, task, scale, wants)
    rows = values.loss if task.weights is None else weighted(values.loss, task.weights)
    values.loss = rows.sum()
    return values, grads


def backward(
    inputs: Inputs, task: Task, wants: tuple[bool, ...], grad_loss_N: Tensor
) -> list[Tensor | None]:
    """The gradients for "none", each in the type of its input."""
    largest = grad_loss_N.float().abs().max() if grad_loss_N.numel() else grad_loss_N.sum()
    largest = torch.where(largest > 0, largest, 1.0)
    _, grads = sweep(inputs, task, grad_loss_N.float() / largest, wants)
    return [
        None if g is None or x is None else scaled_(g, largest, x.dtype)
        for g, x in zip(grads, inputs, strict=True)
    ]


def scaled_(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor as `dtype`, in one pass over what may be the largest tensor there is."""
    if grad.dtype == dtype:
        # Whether the factor is 1 costs nothing to ask on a CPU, and a wait on any other device.
        return grad if factor.device.type == "cpu" and factor == 1 else grad.mul_(factor)
    return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, wants: tuple[bool, ...], *tensors: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*tensors)
        values, grads = forward(inputs, task, wants)
        ctx.wants, ctx.again, ctx.spent = wants, None, False
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        if task.spec.reduction == "none":
            ctx.again = (task, None if isinstance(inputs.weight, Tensor) else inputs.weight)
            ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        else:
            ctx.save_for_backward(*grads)
        rest = (values.kd, values.ce, values.top1, values.entropy)
        ctx.mark_non_differentiable(*rest)
        return values.loss, *rest

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again is not None:
            task, tiled = ctx.again
            hidden, weight, *rest = ctx.saved_tensors
            inputs = Inputs(hidden, tiled if weight is None else weight, *rest)
            return None, None, *backward(inputs, task, ctx.wants, grad_loss)
        if ctx.spent:
            raise RuntimeError(
                "fused_linear_distill can be differentiated once: its gradients are scaled in "
                "place. Call it again instead of using retain_graph."
            )
        ctx.spent = True
        return (
            None,
            None,
            *(
                g if g is None else scaled_(g, grad_loss, dtype)
                for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            ),
        )
