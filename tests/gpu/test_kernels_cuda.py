"""The Triton kernel on a CUDA device against the float64 formula."""

from typing import get_args

import pytest
import torch
from distill_kernels import (
    DenseTeacher,
    DistillSpec,
    LogitTransform,
    LowRank,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
    sweep,
)
from distill_kernels.spec import Divergence
from support.cuda_cases import NEEDS_CUDA, check_on_device, on_device
from support.kernel_cases import make_case, relative_error

pytestmark = NEEDS_CUDA


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("support", ["tail_bucket", "renormalize", "sampled"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("vocab, k", [(101, 7), (49_152, 64), (151_936, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formula(backend, support, temperature, vocab, k, dtype):
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
    check_on_device(case, spec, backend, tolerance=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("teacher", ["tail_bucket", "renormalize", "dense"])
@pytest.mark.parametrize("vocab", [101, 49_152])
def test_divergences(backend, divergence, teacher, vocab):
    case = make_case(rows=19, dim=32, vocab=vocab, k=40, temperature=2.0, bias=True)
    if teacher == "dense":
        case.teacher = DenseTeacher(torch.randn(19, 24), torch.randn(vocab, 24))
    spec = DistillSpec(
        divergence=divergence,
        temperature=2.0,
        alpha=0.7,
        beta=0.3,
        label_smoothing=0.1,
        support="renormalize" if teacher == "renormalize" else "tail_bucket",
    )
    check_on_device(case, spec, backend)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_by_inductor(reduction):
    case = make_case(rows=40, dim=32, vocab=1000, k=16, temperature=2.0)
    teacher, labels = on_device(case.teacher), case.labels.cuda()
    spec = DistillSpec(temperature=2.0, alpha=0.7, reduction=reduction)
    down, up = torch.randn(4, 32).cuda(), torch.randn(1000, 4).cuda()

    def loss(hidden, weight):
        low_rank = LowRank(hidden @ down.t(), up)
        out = fused_linear_distill(hidden, weight, teacher, labels, spec=spec, low_rank=low_rank)
        return out.loss.sum()

    results = []
    for call in (loss, torch.compile(loss, fullgraph=True)):
        hidden, weight = (x.cuda().requires_grad_() for x in (case.hidden, case.weight))
        call(hidden, weight).backward()
        results.append((hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert relative_error(compiled, eager) < 1e-5


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 30.0)])
@pytest.mark.parametrize("biased", [False, True])
def test_peak_memory_does_not_grow_with_the_vocabulary(transform, biased):
    """Beyond inputs and gradients: a chunk of logits, whatever is done to them."""
    peaks = []
    for vocab in (32_000, 151_936):
        bias = torch.randn(vocab, device="cuda") if biased else None
        hidden = torch.randn(8192, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocab, 256, device="cuda", dtype=torch.bfloat16)
        ids = torch.arange(64, device="cuda").expand(8192, 64).contiguous()
        logprobs = torch.full((8192, 64), 1 / 128, device="cuda").log()
        teacher = SparseTeacher(ids, logprobs, torch.full((8192,), 0.5, device="cuda").log())
        labels = torch.zeros(8192, dtype=torch.int64, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = fused_linear_distill(
            hidden,
            weight,
            teacher,
            labels,
            spec=DistillSpec(),
            bias=bias,
            logit_transform=transform,
        )
        out.loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    rest = 64 << 20  # checks of the ids, hidden's gradient, products of a chunk in fp32
    assert max(peaks) < sweep.CHUNK_BYTES["cuda"] + rest


def test_more_logits_than_an_int32_counts():
    rows, vocab = 16_384, 151_936
    assert rows * vocab > 2**31
    hidden = torch.randn(rows, 64, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(vocab, 64, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(0, vocab, (rows, 1), device="cuda")
    log_half = torch.full((rows,), 0.5, device="cuda").log()
    teacher = SparseTeacher(ids, log_half[:, None], log_half)
    labels = torch.randint(0, vocab, (rows,), device="cuda")
    spec = DistillSpec(alpha=0.5, reduction="sum")
    whole = fused_linear_distill(hidden, weight, teacher, labels, spec=spec)
    last = slice(rows - 100, rows)
    parts = [
        fused_linear_distill(hidden[at], weight, teacher[at], labels[at], spec=spec).loss.item()
        for at in (slice(0, rows - 100), last)
    ]
    assert whole.loss.item() == pytest.approx(sum(parts), rel=1e-5)
    logits = hidden[last].double() @ weight.double().t()
    exact = distill_loss(logits, teacher[last], labels[last], spec=spec)
    assert parts[1] == pytest.approx(exact.loss.item(), rel=1e-4)
