"""The Triton kernel on a CUDA device against the float64 formula."""

import dataclasses

import pytest
import torch
from distill_kernels import DistillSpec, LogitTransform, SparseTeacher, fused_linear_distill
from support.kernel_cases import make_case, oracle, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_cuda(teacher: SparseTeacher) -> SparseTeacher:
    return SparseTeacher(
        *(None if value is None else value.cuda() for value in dataclasses.astuple(teacher))
    )


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("support", ["tail_bucket", "renormalize", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocab, k", [(101, 7), (49_152, 64), (151_936, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formula(backend, support, temperature, vocab, k, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    case = make_case(
        rows=37,
        dim=64,
        vocab=vocab,
        k=k,
        temperature=temperature,
        sampled=support == "sampled",
        transform=LogitTransform(0.5, 20.0),
    )
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype)
    spec = DistillSpec(temperature=temperature, alpha=0.7, support=support)
    loss, grads = oracle(case, spec)
    hidden = case.hidden.cuda().requires_grad_()
    weight = case.weight.cuda().requires_grad_()
    out = fused_linear_distill(
        hidden,
        weight,
        on_cuda(case.teacher),
        case.labels.cuda(),
        spec=spec,
        logit_transform=case.transform,
        backend=backend,
    )
    out.loss.backward()
    assert relative_error(out.loss.detach(), loss) < 1e-5
    for seen, expected in ((hidden.grad, grads[0]), (weight.grad, grads[1])):
        allowed = 1e-5
        if dtype == torch.bfloat16:
            allowed = 2 * relative_error(expected.to(dtype), expected)
        assert relative_error(seen, expected) < allowed
