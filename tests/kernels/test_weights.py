"""weights: the loss of a row counts w times, in one sweep."""

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
    sweep,
)
from support.kernel_cases import check, make_case, oracle, relative_error, run

BACKENDS = ["reference", "torch", "triton"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dense", [False, True])
def test_formula(backend, reduction, dense):
    case = make_case(weighted=True, bias=True, temperature=2.0, seed=1)
    if dense:
        case.teacher = DenseLogits(torch.randn(13, 101))
    case.weights[3] = 0.0
    check(case, DistillSpec(temperature=2.0, alpha=0.6, reduction=reduction), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_is_as_good_as_a_repetition(backend):
    case = make_case(rows=6, ragged=False, seed=2)
    spec = DistillSpec(alpha=0.5)
    times = torch.tensor([1, 3, 2, 0, 2, 1])
    case.weights = times.double()
    weighted, (grad, *_) = run(case, spec, backend)
    index = torch.repeat_interleave(times)
    many = make_case(rows=6, ragged=False, seed=2)
    many.hidden, many.labels = many.hidden[index], many.labels[index]
    many.teacher = many.teacher[index]
    repeated, (grads, *_) = run(many, spec, backend)
    assert weighted.loss.item() == pytest.approx(repeated.loss.item(), rel=1e-6)
    assert relative_error(grad, torch.zeros(6, 16).index_add(0, index, grads)) < 3e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_row(backend):
    case = make_case(seed=3)
    weights = torch.rand(13)
    args = (case.hidden, case.weight, case.teacher, case.labels)
    spec = DistillSpec(alpha=0.5, reduction="none")
    plain = fused_linear_distill(*args, spec=spec, backend=backend).loss
    hidden = case.hidden.clone().requires_grad_()
    out = fused_linear_distill(hidden, *args[1:], spec=spec, weights=weights, backend=backend)
    torch.testing.assert_close(out.loss.detach(), plain * weights)
    out.loss.sum().backward()
    case.weights = weights
    _, (exact, *_) = oracle(case, DistillSpec(alpha=0.5, reduction="sum"))
    assert relative_error(hidden.grad, exact) < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_weight_at_all(backend, reduction):
    """Weights of 0, and whatever stands in rows without a label: loss and gradient 0, no NaN."""
    case = make_case(seed=4)
    case.weights = torch.zeros(13)
    case.weights[case.labels == -100] = torch.nan
    out, grads = run(case, DistillSpec(reduction=reduction), backend)
    assert out.loss.item() == 0.0
    assert all(g.abs().max() == 0 for g in grads if g is not None)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_sweep(backend, monkeypatch):
    """The products are made once, as without weights."""
    seen = []
    project = sweep.project
    monkeypatch.setattr(sweep, "project", lambda *args: (seen.append(1), project(*args)))
    case = make_case(weighted=True)
    run(case, DistillSpec(), backend)
    assert len(seen) == 1


def test_compiles_and_agrees():
    case = make_case(rows=20, weighted=True, temperature=2.0)
    spec = DistillSpec(temperature=2.0, alpha=0.7)

    def loss(hidden, weight, weights):
        return fused_linear_distill(
            hidden, weight, case.teacher, case.labels, spec=spec, weights=weights, backend="torch"
        ).loss

    results = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        hidden, weight, _ = case.leaves(torch.float32)
        call(hidden, weight, case.weights).backward()
        results.append((hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert relative_error(compiled, eager) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "weights, message",
    [
        (torch.ones(12), "weights has 12 rows, the student has 13"),
        (torch.ones(13, 1), r"weights \(13, 1\).*expected floats \[N\]"),
        (torch.ones(13, dtype=torch.int64), "int64: expected floats"),
        (torch.full((13,), torch.nan), "below 0 or not finite"),
        (torch.full((13,), -1.0), "below 0 or not finite"),
        (torch.full((13,), torch.inf), "below 0 or not finite"),
        (torch.ones(13, requires_grad=True), "detach"),
    ],
)
def test_wrong_weights(backend, weights, message):
    case = make_case()
    with pytest.raises(ValueError, match=message):
        fused_linear_distill(
            case.hidden,
            case.weight,
            case.teacher,
            case.labels,
            spec=DistillSpec(),
            weights=weights,
            backend=backend,
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weight", [1.0, 1e-6])
def test_half_precision_slopes_keep_their_digits(backend, reduction, weight, monkeypatch):
    """fp16 slopes as on a GPU: 1/N, small weights and a gradient scaler come after the products.

    Folded into the slopes, 1/N of 65,536 rows costs three quarters of the gradient.
    """
    monkeypatch.setattr(sweep, "gradient_dtype", lambda hidden: hidden.dtype)
    rows = 65_536 if backend == "torch" else 32
    repeats = rows // 32
    case = make_case(rows=32, dim=8, vocab=64, k=4, ragged=False)
    hidden = case.hidden.half().repeat(repeats, 1).requires_grad_()
    head = case.weight.half().requires_grad_()
    part = case.teacher
    teacher = SparseTeacher(
        part.ids.repeat(repeats, 1),
        part.logprobs.repeat(repeats, 1),
        part.tail_logprob.repeat(repeats),
    )
    labels = case.labels.repeat(repeats)
    spec = DistillSpec(alpha=0.7, reduction=reduction)
    out = fused_linear_distill(
        hidden,
        head,
        teacher,
        labels,
        spec=spec,
        weights=torch.full((rows,), weight),
        backend=backend,
    )
    # What a gradient scaler does: the result would otherwise be below fp16 itself.
    size = {"mean": 1.0, "none": 1 / ((labels != -100).sum() * weight)}[reduction]
    (out.loss.sum() * size * rows).backward()

    exact = case.hidden.half().double().requires_grad_()
    exact_head = case.weight.half().double().requires_grad_()
    logits = exact @ exact_head.t()
    distill_loss(logits, case.teacher, case.labels, spec=DistillSpec(alpha=0.7)).loss.backward()
    wanted = exact.grad.repeat(repeats, 1) * 32
    rounding = relative_error(wanted.half(), wanted)
    assert relative_error(hidden.grad, wanted) < 3 * rounding
    assert relative_error(head.grad, exact_head.grad * rows) < 3 * rounding
