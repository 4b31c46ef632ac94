"""Every backend against the formula in float64, and against implementations that are not ours."""

from typing import get_args

import pytest
import torch
from distill_kernels import (
    DistillSpec,
    LogitTransform,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
)
from distill_kernels.spec import Divergence
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.kernel_cases import check, make_case, oracle, relative_error, run
from torch.nn import functional as F

BACKENDS = ["reference", "torch", "triton"]
SUPPORTS = ["tail_bucket", "renormalize", "sampled"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
def test_formula(backend, support, temperature, alpha):
    seed = int(torch.randint(0, 2**31, ()))
    print("seed", seed)
    case = make_case(temperature=temperature, sampled=support == "sampled", seed=seed)
    check(case, DistillSpec(temperature=temperature, alpha=alpha, support=support), backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20),
    vocab=st.integers(2, 140),
    share=st.floats(0.01, 1.0),
    temperature=st.sampled_from([0.7, 1.0, 2.0, 4.0]),
    alpha=st.floats(0.0, 1.0),
    support=st.sampled_from(SUPPORTS),
    reduction=st.sampled_from(["mean", "sum"]),
    bias=st.booleans(),
    transform=st.sampled_from([LogitTransform(), LogitTransform(0.25), LogitTransform(1.5, 5.0)]),
    seed=st.integers(0, 2**31),
)
@example(  # the student is certain of the label: a loss of 1e-6 from logits of 8
    rows=1,
    vocab=2,
    share=1.0,
    temperature=0.7,
    alpha=0.0,
    support="sampled",
    reduction="mean",
    bias=False,
    transform=LogitTransform(),
    seed=122,
)
def test_any_shape(
    backend, rows, vocab, share, temperature, alpha, support, reduction, bias, transform, seed
):
    case = make_case(
        rows=rows,
        vocab=vocab,
        k=max(1, int(share * vocab)),
        temperature=temperature,
        sampled=support == "sampled",
        bias=bias,
        transform=transform,
        seed=seed,
    )
    spec = DistillSpec(temperature=temperature, alpha=alpha, support=support, reduction=reduction)
    check(case, spec, backend, tolerance=2e-5, may_cancel=True)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("k", [1, 64, 300])
def test_real_vocabulary(backend, k):
    case = make_case(rows=5, dim=24, vocab=49_152, k=k, temperature=2.0, seed=k)
    check(case, DistillSpec(temperature=2.0, alpha=0.7), backend, tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_nothing_to_learn(backend, support):
    """Only ignored rows: loss 0 and gradient 0, no NaN."""
    case = make_case(sampled=support == "sampled")
    case.labels.fill_(-100)
    out, grads = run(case, DistillSpec(temperature=2.0, support=support), backend)
    assert out.loss.item() == 0.0 and out.num_tokens.item() == 0
    assert all(g.abs().sum().item() == 0.0 for g in grads if g is not None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_at_all(backend):
    hidden, weight = torch.randn(0, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    teacher = SparseTeacher(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0))
    labels = torch.zeros(0, dtype=torch.int64)
    out = fused_linear_distill(hidden, weight, teacher, labels, spec=DistillSpec(), backend=backend)
    out.loss.backward()
    assert out.loss.item() == 0.0 and out.num_tokens.item() == 0
    assert weight.grad.abs().sum().item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_entries_are_plain_cross_entropy(backend):
    case = make_case(k=3, seed=5)
    case.teacher.ids.fill_(-1)
    case.teacher.logprobs.fill_(-torch.inf)
    out, grads = run(case, DistillSpec(alpha=0.9, temperature=2.0), backend)
    hidden, weight, _ = case.leaves(torch.float32)
    expected = F.cross_entropy(hidden @ weight.t(), case.labels)
    expected.backward()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(grads[0], hidden.grad) < 3e-6
    assert relative_error(grads[1], weight.grad) < 3e-6
    assert out.num_teacher_tokens.item() == 0 and out.kd.item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_t_squared_is_in_value_and_gradient(backend, temperature):
    """The slope of the value, by finite differences in float64, is the gradient that comes out."""
    spec = DistillSpec(temperature=temperature, alpha=0.8, reduction="sum")
    case = make_case(temperature=temperature, seed=3)
    out, grads = run(case, spec, backend)
    g = torch.Generator().manual_seed(1)
    direction = torch.randn(case.hidden.shape, generator=g, dtype=torch.float64)

    def value(step: float) -> float:
        moved = case.hidden.double() + step * direction
        logits = moved @ case.weight.double().t()
        return distill_loss(logits, case.teacher, case.labels, spec=spec).loss.item()

    slope = (value(1e-5) - value(-1e-5)) / 2e-5
    assert (grads[0].double() * direction).sum().item() == pytest.approx(slope, rel=1e-5)
    assert out.loss.item() == pytest.approx(value(0.0), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_full_support_is_torch_kl_div(backend, temperature):
    """K = V: the tail is empty and the loss is F.kl_div, times T^2."""
    case = make_case(vocab=53, k=53, ragged=False, temperature=temperature, seed=11)
    case.labels.clamp_min_(0)
    spec = DistillSpec(temperature=temperature, reduction="sum")
    out, grads = run(case, spec, backend)
    hidden, weight, _ = case.leaves(torch.float64)
    teacher = torch.empty(13, 53, dtype=torch.float64)
    teacher.scatter_(1, case.teacher.ids, case.teacher.logprobs)
    student = (hidden @ weight.t() / temperature).log_softmax(-1)
    expected = F.kl_div(student, teacher, reduction="sum", log_target=True) * temperature**2
    expected.backward()
    assert relative_error(out.loss, expected.detach()) < 3e-6
    assert relative_error(grads[0], hidden.grad) < 5e-6
    assert relative_error(grads[1], weight.grad) < 5e-6


def test_full_support_is_trl():
    """TRL's generalized JSD at beta 0 is forward KL, without the T^2."""
    from trl.experimental.gkd import GKDTrainer

    case = make_case(rows=9, vocab=40, k=40, ragged=False, temperature=2.0, seed=4)
    case.labels.clamp_min_(0)
    student = torch.randn(1, 9, 40)
    teacher = torch.empty(9, 40, dtype=torch.float64)
    teacher.scatter_(1, case.teacher.ids, case.teacher.logprobs)
    theirs = GKDTrainer.generalized_jsd_loss(
        student, 2.0 * teacher.float()[None], labels=case.labels[None], beta=0.0, temperature=2.0
    )
    ours = distill_loss(student[0], case.teacher, case.labels, spec=DistillSpec(temperature=2.0))
    assert ours.loss.item() == pytest.approx(4.0 * theirs.item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_tail_is_axolotls_own_kd(backend):
    """A teacher that is renormalised over its entries: the loss of Axolotl's KD plugin at T = 1."""
    from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss

    case = make_case(rows=16, ragged=False, seed=12)
    logprobs = case.teacher.logprobs.float().log_softmax(-1)
    case.teacher = SparseTeacher(case.teacher.ids, logprobs, torch.full((16,), -torch.inf))
    case.labels.clamp_min_(0)
    out, grads = run(case, DistillSpec(reduction="sum"), backend)
    hidden, weight, _ = case.leaves(torch.float32)
    theirs = LigerFusedLinearKLTopKLogprobLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        temperature=1.0,
        beta=0.0,
        compiled=False,
        compute_ce_loss=False,
        normalize_topk=False,
    )(
        weight,
        hidden[None],
        case.teacher.ids[None],
        logprobs[None],
        torch.ones_like(case.teacher.ids)[None],
        case.labels[None],
    )
    theirs.backward()
    assert out.loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert relative_error(grads[0], hidden.grad) < 1e-5
    assert relative_error(grads[1], weight.grad) < 1e-5


def test_draws_are_unbiased():
    """The mean gradient over many draws is that of the KL over the whole vocabulary."""
    rows, vocab, draws, repeats = 2, 30, 8, 4000
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(rows, vocab, generator=g)
    teacher = (torch.randn(rows, vocab, generator=g) * 2).log_softmax(-1)
    labels = torch.zeros(rows, dtype=torch.int64)
    many = teacher.repeat(repeats, 1)
    ids = torch.multinomial(many.exp(), draws, replacement=True, generator=g).sort(-1).values
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    counts = (ids[:, :, None] == ids[:, None, :]).sum(-1)
    sparse = SparseTeacher(
        ids=torch.where(first, ids, -1),
        logprobs=(counts / draws).log().masked_fill(~first, -torch.inf),
        entropy=-(many.exp() * many).sum(-1),
    )
    z = logits.repeat(repeats, 1).requires_grad_()
    out = distill_loss(z, sparse, labels.repeat(repeats), spec=DistillSpec(support="sampled"))
    out.loss.backward()
    full = logits.clone().requires_grad_()
    expected = F.kl_div(full.log_softmax(-1), teacher, log_target=True, reduction="sum") / rows
    expected.backward()
    mean = z.grad.view(repeats, rows, vocab).sum(0)
    assert relative_error(mean, full.grad) < 4 / (repeats * draws) ** 0.5
    assert out.loss.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("support", ["tail_bucket", "renormalize"])
def test_never_negative(support):
    """Near the teacher itself, where a truncated sum would go below zero."""
    for seed in range(20):
        case = make_case(rows=8, dim=64, vocab=64, k=5, ragged=False, seed=seed)
        teacher = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).double() * 3
        top = teacher.log_softmax(-1).topk(5)
        rest = teacher.log_softmax(-1).scatter(1, top.indices, -torch.inf).logsumexp(-1)
        case.teacher = SparseTeacher(top.indices, top.values, rest)
        logits = teacher + 1e-3 * torch.randn(8, 64, dtype=torch.float64)
        out = distill_loss(
            logits, case.teacher, case.labels, spec=DistillSpec(support=support, reduction="sum")
        )
        assert out.kd.item() >= 0.0


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_certain_student_does_not_overflow(backend):
    """The student's tail underflows although the teacher's does not."""
    case = make_case(k=2, ragged=False, seed=8)
    case.weight.mul_(400)
    out, found = run(case, DistillSpec(), backend)
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(g).all() for g in found if g is not None)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_bf16_costs_no_more_than_its_own_rounding(temperature, divergence):
    """Against a float64 run on the same bf16 inputs whose results are rounded once to bf16."""
    case = make_case(rows=64, dim=64, vocab=1000, k=16, temperature=temperature, seed=6)
    case.hidden, case.weight = case.hidden.bfloat16(), case.weight.bfloat16()
    spec = DistillSpec(temperature=temperature, alpha=0.7, divergence=divergence)
    _, exact = oracle(case, spec)
    _, found = run(case, spec, "torch", dtype=torch.bfloat16)
    for seen, expected in zip(found[:2], exact[:2], strict=True):
        rounding = relative_error(expected.bfloat16(), expected)
        assert relative_error(seen, expected) < 2 * rounding


def test_metrics_are_sums_over_rows():
    case = make_case(rows=20, seed=9)
    spec = DistillSpec(temperature=1.0, alpha=0.5)
    for backend in BACKENDS:
        out, _ = run(case, spec, backend)
        logits = case.hidden.double() @ case.weight.double().t()
        labelled = case.labels != -100
        taught = labelled & (case.teacher.ids >= 0).any(-1)
        first = case.teacher.ids[:, 0]
        assert out.num_tokens.item() == labelled.sum().item()
        assert out.num_teacher_tokens.item() == taught.sum().item()
        assert out.top1_agreement.item() == (logits.argmax(-1) == first)[taught].sum().item()
        mass = case.teacher.logprobs.exp().sum(-1)[taught].sum().item()
        assert out.teacher_mass.item() == pytest.approx(mass, rel=1e-5)
        ce = F.cross_entropy(logits, case.labels, ignore_index=-100, reduction="sum").item()
        assert out.ce.item() == pytest.approx(ce, rel=1e-5)


def test_autocast_casts_as_a_linear_would():
    case = make_case(rows=32, dim=64, vocab=200, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = run(case, DistillSpec(), "torch")
    low = make_case(rows=32, dim=64, vocab=200, seed=2)
    low.hidden, low.weight = low.hidden.bfloat16(), low.weight.bfloat16()
    expected, _ = oracle(low, DistillSpec())
    assert relative_error(out.loss, expected) < 1e-5
    assert grads[0].dtype == torch.float32


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(temperature=0.0), "temperature"),
        (dict(alpha=1.5), "alpha"),
        (dict(support="top"), "support"),
        (dict(divergence="backward_kl"), "divergence"),
    ],
)
def test_wrong_spec(wrong, message):
    with pytest.raises(ValueError, match=message):
        DistillSpec(**wrong)


def test_wrong_inputs():
    case = make_case()
    no_tail = SparseTeacher(case.teacher.ids, case.teacher.logprobs)
    args = (case.hidden, case.weight)
    with pytest.raises(ValueError, match="tail_logprob"):
        fused_linear_distill(*args, no_tail, case.labels, spec=DistillSpec())
    with pytest.raises(ValueError, match="12 rows"):
        fused_linear_distill(*args, case.teacher, case.labels[:12], spec=DistillSpec())
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        fused_linear_distill(
            case.hidden[:, :3], case.weight, case.teacher, case.labels, spec=DistillSpec()
        )
    with pytest.raises(ValueError, match="backend"):
        fused_linear_distill(*args, case.teacher, case.labels, spec=DistillSpec(), backend="gpu")


def test_a_second_backward_is_refused():
    case = make_case()
    hidden, weight, _ = case.leaves(torch.float32)
    out = fused_linear_distill(hidden, weight, case.teacher, case.labels, spec=DistillSpec())
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        out.loss.backward()
