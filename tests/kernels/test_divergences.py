"""Every divergence, for every teacher it is defined for, against its equation and against peers."""

from typing import get_args

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DenseTeacher,
    DistillSpec,
    LogitTransform,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
)
from distill_kernels.spec import Divergence
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import Case, check, make_case, oracle, relative_error

BACKENDS = ["reference", "torch", "triton"]
DIVERGENCES = list(get_args(Divergence))
TEACHERS = ["tail_bucket", "renormalize", "dense_logits", "dense_teacher"]


def case_for(teacher: str, *, teacher_vocab: int | None = None, **kwargs) -> Case:
    """A case whose teacher is sparse with that support, or dense over `teacher_vocab` ids."""
    case = make_case(**kwargs)
    if not teacher.startswith("dense"):
        return case
    (rows, _), vocab = case.hidden.shape, case.weight.shape[0]
    g = torch.Generator().manual_seed(kwargs.get("seed", 0) + 1)
    size = teacher_vocab or vocab
    if teacher == "dense_logits":
        case.teacher = DenseLogits(torch.randn(rows, size, generator=g) * 3)
    else:
        hidden, weight = torch.randn(rows, 9, generator=g), torch.randn(size, 9, generator=g)
        case.teacher = DenseTeacher(hidden, weight, logit_transform=LogitTransform(softcap=15.0))
    return case


def support_of(teacher: str) -> str:
    return teacher if teacher in ("tail_bucket", "renormalize") else "tail_bucket"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equation(backend, divergence, teacher, temperature):
    seed = int(torch.randint(0, 2**31, ()))
    print("seed", seed)
    case = case_for(teacher, temperature=temperature, seed=seed)
    spec = DistillSpec(
        divergence=divergence,
        temperature=temperature,
        alpha=0.7,
        beta=0.3,
        support=support_of(teacher),
    )
    check(case, spec, backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    divergence=st.sampled_from(DIVERGENCES),
    teacher=st.sampled_from(TEACHERS),
    rows=st.integers(1, 12),
    vocab=st.integers(2, 90),
    share=st.floats(0.01, 1.0),
    temperature=st.sampled_from([0.7, 1.0, 4.0]),
    alpha=st.floats(0.0, 1.0),
    beta=st.integers(0, 50).map(lambda x: x / 50),
    skew=st.integers(0, 45).map(lambda x: x / 50),
    mu=st.floats(0.05, 0.95),
    smoothing=st.sampled_from([0.0, 0.1]),
    bias=st.booleans(),
    transform=st.sampled_from([LogitTransform(), LogitTransform(1.5, 5.0)]),
    seed=st.integers(0, 2**31),
)
def test_any_options(
    backend,
    divergence,
    teacher,
    rows,
    vocab,
    share,
    temperature,
    alpha,
    beta,
    skew,
    mu,
    smoothing,
    bias,
    transform,
    seed,
):
    case = case_for(
        teacher,
        rows=rows,
        vocab=vocab,
        k=max(1, int(share * vocab)),
        temperature=temperature,
        bias=bias,
        transform=transform,
        seed=seed,
    )
    spec = DistillSpec(
        divergence=divergence,
        temperature=temperature,
        alpha=alpha,
        beta=beta,
        skew=skew,
        akl_mu=mu,
        label_smoothing=smoothing,
        support=support_of(teacher),
    )
    check(case, spec, backend, tolerance=3e-5, may_cancel=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("teacher_vocab", [70, 130])
def test_heads_padded_to_different_sizes(backend, divergence, teacher_vocab):
    """The student has 101 ids. What only one side has is no part of the other's distribution."""
    case = case_for("dense_teacher", teacher_vocab=teacher_vocab, seed=3)
    check(case, DistillSpec(divergence=divergence, alpha=0.8, temperature=2.0), backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("distance", [0.0, 1e-4, 1e-2])
def test_never_negative(backend, divergence, teacher, distance):
    """In fp32, next to the teacher, where a truncated sum would fall below zero."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 80, generator=g, dtype=torch.float64) * 3
    full = logits.log_softmax(-1)
    top = full.topk(6)
    rest = full.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    sparse = SparseTeacher(top.indices, top.values.float(), rest.float())
    student = (logits + distance * torch.randn(64, 80, generator=g)).float()
    out = fused_linear_distill(
        student,
        torch.eye(80),
        DenseLogits(logits.float()) if teacher.startswith("dense") else sparse,
        torch.zeros(64, dtype=torch.int64),
        spec=DistillSpec(divergence=divergence, support=support_of(teacher), reduction="none"),
        backend=backend,
    )
    assert out.loss.min().item() >= 0.0
    assert out.loss.max().item() < 1e-5 + 10 * distance


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("teacher", ["tail_bucket", "dense_logits"])
def test_jsd_is_continuous_at_its_ends(backend, teacher):
    """Peers' fault 13: elsewhere the jsd falls to 0 towards its ends, where it is a KL."""
    case = case_for(teacher, seed=4)

    def run(**options):
        hidden = case.hidden.clone().requires_grad_()
        out = fused_linear_distill(
            hidden,
            case.weight,
            case.teacher,
            case.labels,
            spec=DistillSpec(**options),
            backend=backend,
        )
        out.loss.backward()
        return out.loss.item(), hidden.grad

    for end, name in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        value, grad = run(divergence=name)
        assert run(divergence="jsd", beta=end)[0] == value
        for distance in (1e-2, 1e-4, 1e-6, 1e-9):
            beta = abs(end - distance)
            close, close_grad = run(divergence="jsd", beta=beta)
            exact_value, exact = oracle(case, DistillSpec(divergence="jsd", beta=beta))
            if distance > 1e-9:  # below, the plain formula loses its digits in float64
                assert close == pytest.approx(exact_value.item(), rel=1e-4)
                assert relative_error(close_grad, exact[0]) < 1e-4
        assert close == pytest.approx(value, rel=1e-4)
        assert relative_error(close_grad, grad) < 1e-4


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.83, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_jsd_is_trl(beta, temperature):
    """TRL's value times 1 / (beta (1 - beta)), and T^2, which it leaves out."""
    from trl.experimental.gkd import GKDTrainer

    case = case_for("dense_logits", rows=9, vocab=40, seed=2)
    case.labels.clamp_min_(0)
    student = torch.randn(9, 40)
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None],
        case.teacher.logits[None],
        labels=case.labels[None],
        beta=beta,
        temperature=temperature,
    )
    scale = 1.0 if beta in (0.0, 1.0) else 1 / (beta * (1 - beta))
    spec = DistillSpec(divergence="jsd", beta=beta, temperature=temperature)
    ours = distill_loss(student, case.teacher, case.labels, spec=spec).loss.item()
    assert ours == pytest.approx(theirs.item() * scale * temperature**2, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.37, 1.0])
def test_jsd_is_liger(beta):
    """Liger's fused linear JSD, value and gradient, at T = 1."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    case = case_for("dense_teacher", rows=12, dim=9, vocab=40, seed=5)
    case.teacher = DenseTeacher(case.teacher.hidden, case.teacher.weight)
    case.labels.clamp_min_(0)
    hidden, weight, _ = case.leaves(torch.float32)
    liger = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False
    )
    theirs = liger(hidden, weight, case.teacher.hidden, case.teacher.weight, case.labels)
    theirs.backward()
    mine, weight_mine, _ = case.leaves(torch.float32)
    out = fused_linear_distill(
        mine,
        weight_mine,
        case.teacher,
        case.labels,
        spec=DistillSpec(divergence="jsd", beta=beta),
        backend="torch",
    )
    out.loss.backward()
    scale = 1.0 if beta in (0.0, 1.0) else 1 / (beta * (1 - beta))
    assert out.loss.item() == pytest.approx(theirs.item() * scale, rel=1e-4)
    assert relative_error(mine.grad, hidden.grad * scale) < 1e-4
    assert relative_error(weight_mine.grad, weight.grad * scale) < 1e-4


def test_draws_serve_forward_kl_only():
    for divergence in DIVERGENCES[1:]:
        with pytest.raises(ValueError, match=f"{divergence}.*sampled"):
            DistillSpec(divergence=divergence, support="sampled")
    case = case_for("dense_logits")
    with pytest.raises(ValueError, match="SparseTeacher of draws"):
        distill_loss(
            torch.randn(13, 101), case.teacher, case.labels, spec=DistillSpec(support="sampled")
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("teacher", ["tail_bucket", "dense_logits"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_far_apart_stays_finite(backend, teacher, divergence):
    """A certain student and a certain teacher that disagree."""
    case = case_for(teacher, k=2, ragged=False, sharpness=200.0, seed=8)
    case.weight.mul_(400)
    hidden, weight, _ = case.leaves(torch.float32)
    spec = DistillSpec(divergence=divergence, alpha=0.5)
    out = fused_linear_distill(
        hidden, weight, case.teacher, case.labels, spec=spec, backend=backend
    )
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()
