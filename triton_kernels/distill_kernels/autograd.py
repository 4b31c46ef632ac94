"""The sweep as a differentiable operation.

For "mean" and "sum" the gradient is made in the forward pass and scaled in the backward one. For
"none" the backward pass sweeps again, since the weight's gradient needs every row's own factor.
"""

from typing import Any

import torch
from torch import Tensor

from distill_kernels.graph import run_in_graph
from distill_kernels.rows_torch import RowValues
from distill_kernels.sweep import Inputs, Task, row_scale, sweep


def run(inputs: Inputs, task: Task) -> RowValues:
    """Values of the rows; `loss` is reduced and differentiable with respect to `inputs`."""
    if torch.compiler.is_compiling():
        return run_in_graph(inputs, task)
    return RowValues(*_Sweep.apply(task, *inputs))


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: Task, *tensors: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*tensors)
        wants = ctx.needs_input_grad[1:]
        ctx.again, ctx.spent = None, False
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        if task.spec.reduction == "none":
            values, _ = sweep(inputs, task, None, (False,) * len(inputs))
            loss = values.loss
            ctx.again = (task, None if isinstance(inputs.weight, Tensor) else inputs.weight)
            ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        else:
            scale = row_scale(task.labels, task.spec)
            values, grads = sweep(inputs, task, scale, wants)
            loss = values.loss.sum() * scale
            ctx.save_for_backward(*grads)
        rest = (values.kd, values.ce, values.top1, values.entropy)
        ctx.mark_non_differentiable(*rest)
        return loss, *rest

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.again is None:
            if ctx.spent:
                raise RuntimeError(
                    "fused_linear_distill can be differentiated once: its gradients are scaled in "
                    "place. Call it again instead of using retain_graph."
                )
            ctx.spent = True
            return None, *(
                g if g is None else _scaled_(g, grad_loss, dtype)
                for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            )
        task, tiled = ctx.again
        hidden, weight, *rest = ctx.saved_tensors
        inputs = Inputs(hidden, tiled if weight is None else weight, *rest)
        _, grads = sweep(inputs, task, grad_loss.float(), ctx.needs_input_grad[1:])
        return None, *(
            g if g is None else g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)
        )


def _scaled_(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor as `dtype`, in one pass over what may be the largest tensor there is."""
    if grad.dtype == dtype:
        # Whether the factor is 1 costs nothing to ask on a CPU, and a wait on any other device.
        return grad if factor.device.type == "cpu" and factor == 1 else grad.mul_(factor)
    return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))
