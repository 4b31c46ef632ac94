"""What only a device can show: its arithmetic, its memory, its other devices."""

from typing import get_args

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    LogitTransform,
    distill_loss,
    fused_linear_distill,
)
from distill_kernels.spec import Divergence
from support.cuda_cases import NEEDS_CUDA, check_on_device, on_device, run_on_device
from support.hostile_cases import INFINITE, hostile
from support.kernel_cases import make_case, oracle, relative_error

pytestmark = NEEDS_CUDA


def test_evaluation_of_a_trained_head_makes_no_gradient():
    hidden = torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16)
    weight = torch.nn.Parameter(torch.randn(49_152, 1024, device="cuda", dtype=torch.bfloat16))
    labels = torch.zeros(64, dtype=torch.int64, device="cuda")
    teacher = DenseLogits(torch.randn(64, 49_152, device="cuda"))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            fused_linear_distill(hidden, weight, teacher, labels, spec=DistillSpec())
            assert torch.cuda.max_memory_allocated() - before < 2 * weight.numel()


@pytest.mark.parametrize("vocab", [101, 32_001, 49_155, 50_257])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_vocabularies_with_all_that_a_head_has(vocab, dense, dtype):
    """Bias, scale, soft-cap, weights and smoothing within the kernel."""
    case = make_case(
        rows=21,
        dim=32,
        vocab=vocab,
        k=20,
        bias=True,
        weighted=True,
        temperature=2.0,
        transform=LogitTransform(0.5, 20.0),
    )
    case.hidden, case.weight = case.hidden.to(dtype), case.weight.to(dtype)
    if dense:
        case.teacher = DenseLogits(torch.randn(21, vocab))
    spec = DistillSpec(divergence="jsd", beta=0.3, temperature=2.0, alpha=0.7, label_smoothing=0.1)
    check_on_device(case, spec, "triton", roundings=3)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_hostile_inputs(backend):
    """-inf, masses that do not sum to one, underflow: as on the CPU, but in real arithmetic."""
    for seed in range(300):
        case, spec = hostile(seed)
        exact, (slope, _, _) = oracle(case, spec)
        if not exact < INFINITE:
            continue
        out, (grad, _, _) = run_on_device(case, spec, backend, wants=("hidden",))
        logits = case.transform(case.hidden + case.bias)
        largest = logits[logits.isfinite()].abs().max().item()
        size = 2e-5 * (1 + largest / spec.temperature) * max(spec.temperature, 1.0) ** 2
        size *= len(case.labels)
        assert abs(out.loss.item() - exact.item()) < size + 1e-4 * abs(exact.item()), seed
        error = (grad.double().cpu() - slope).abs().max()
        assert error < 100 * size + 1e-4 * slope.abs().max(), seed


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("broken", ["hidden", "teacher"])
@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_nan_stays_nan(dense, broken, divergence):
    """The device's maximum drops a NaN where the interpreter's keeps it."""
    if broken == "teacher" and not dense:
        pytest.skip("refused by a device-side assertion, which ends the process")
    case = make_case(ragged=False)
    hidden, teacher = case.hidden.cuda(), on_device(case.teacher)
    if dense:
        teacher = DenseLogits(torch.randn(13, 101, device="cuda"))
    (hidden if broken == "hidden" else teacher.logits)[0, 0] = torch.nan
    out = fused_linear_distill(
        hidden,
        case.weight.cuda(),
        teacher,
        case.labels.cuda(),
        spec=DistillSpec(divergence=divergence),
        backend="triton",
    )
    assert out.loss.isnan()


@pytest.mark.parametrize("rows", [96, 65_536])
def test_half_precision_slopes_keep_their_digits(rows):
    """fp16 and a mean over many rows, as under a gradient scaler."""
    case = make_case(rows=32, dim=16, vocab=512, k=4, ragged=False)
    hidden = case.hidden.half().cuda().repeat(rows // 32, 1).requires_grad_()
    weight = case.weight.half().cuda().requires_grad_()
    index = torch.arange(32, device="cuda").repeat(rows // 32)
    teacher, labels = on_device(case.teacher)[index], case.labels.cuda()[index]
    out = fused_linear_distill(hidden, weight, teacher, labels, spec=DistillSpec())
    (out.loss * rows).backward()
    exact = case.hidden.half().double().requires_grad_()
    logits = exact @ case.weight.half().double().t()
    distill_loss(logits, case.teacher, case.labels, spec=DistillSpec()).loss.backward()
    wanted = exact.grad.repeat(rows // 32, 1) * 32
    assert relative_error(hidden.grad, wanted) < 3 * relative_error(wanted.half(), wanted)


@pytest.mark.parametrize("vocab", [151_936, 50_257])
def test_the_sum_over_the_vocabulary_is_made_in_fp32(vocab):
    """Few rows and many ids, where cuBLAS splits the sum, and may add its parts in bf16."""
    case = make_case(rows=8, dim=64, vocab=vocab, k=8, ragged=False)
    case.hidden, case.weight = case.hidden.bfloat16(), case.weight.bfloat16()
    _, grads = oracle(case, DistillSpec())
    _, (grad, _, _) = run_on_device(case, DistillSpec(), wants=("hidden",))
    rounding = relative_error(grads[0].bfloat16(), grads[0])
    assert relative_error(grad, grads[0]) < 2 * rounding


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_the_tensors_device_need_not_be_the_current_one():
    case = make_case(rows=21, dim=32, vocab=1000, k=20)
    loss, (grad, _, _) = oracle(case, DistillSpec())
    with torch.cuda.device(0):
        out, (seen, _, _) = run_on_device(case, DistillSpec(), wants=("hidden",), device="cuda:1")
    assert relative_error(out.loss.detach(), loss) < 2e-5
    assert relative_error(seen, grad) < 2e-5
