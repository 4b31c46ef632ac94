"""Kernel cases on a CUDA device: what the tests there share."""

from dataclasses import fields, replace

import pytest
import torch
from distill_kernels import DistillOutput, DistillSpec, fused_linear_distill
from distill_kernels.teacher import Teacher
from support.kernel_cases import Case, oracle, relative_error
from torch import Tensor

NEEDS_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_device(teacher: Teacher, device: str = "cuda") -> Teacher:
    parts = {field.name: getattr(teacher, field.name) for field in fields(teacher)}
    return replace(
        teacher, **{name: x.to(device) for name, x in parts.items() if isinstance(x, Tensor)}
    )


def run_on_device(
    case: Case,
    spec: DistillSpec,
    backend: str = "auto",
    *,
    wants: tuple[str, ...] = ("hidden", "weight", "bias"),
    device: str = "cuda",
) -> tuple[DistillOutput, list[Tensor | None]]:
    """The fused loss and the gradients of hidden, weight and bias; None of what is not wanted.

    Each keeps the type that it has in the case.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    leaves = {}
    for name in ("hidden", "weight", "bias"):
        x = getattr(case, name)
        leaves[name] = None if x is None else x.to(device).requires_grad_(name in wants)
    out = fused_linear_distill(
        leaves["hidden"],
        leaves["weight"],
        on_device(case.teacher, device),
        case.labels.to(device),
        spec=spec,
        weights=None if case.weights is None else case.weights.to(device),
        bias=leaves["bias"],
        logit_transform=case.transform,
        backend=backend,
    )
    out.loss.backward()
    return out, [None if x is None else x.grad for x in leaves.values()]


def check_on_device(
    case: Case,
    spec: DistillSpec,
    backend: str,
    tolerance: float = 2e-5,
    roundings: float = 2.0,
    *,
    device: str = "cuda",
) -> None:
    """Hold value and gradients to the oracle's.

    tolerance  relative; the device's fast exponentials and logarithms are good to a few times 1e-7
    roundings  of a gradient of a low type: how many times the error of rounding the exact one
    """
    loss, grads = oracle(case, spec)
    out, found = run_on_device(case, spec, backend, device=device)
    assert relative_error(out.loss.detach(), loss) < tolerance
    dtype = case.hidden.dtype
    for seen, expected in zip(found, grads, strict=True):
        assert (seen is None) == (expected is None)
        if seen is not None:
            rounding = relative_error(expected.to(dtype), expected)
            allowed = tolerance if dtype == torch.float32 else roundings * rounding
            assert relative_error(seen, expected) < allowed
