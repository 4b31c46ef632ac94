"""What the loss never makes: whole logits, gradients that nobody wants, more than its budget."""

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    LogitTransform,
    LowRank,
    fused_linear_distill,
    sweep,
)
from distill_kernels.backends import torch_rows
from support.kernel_cases import make_case
from support.memory import held

BACKENDS = ["torch", "triton"]


def test_logits_are_never_whole(monkeypatch):
    """Forward and backward together never hold N x V numbers, nor a gradient of a frozen head."""
    monkeypatch.setitem(sweep.CHUNK_BYTES, "cpu", 4 * 2000 * 32)
    rows, vocab, dim = 1024, 2000, 8
    case = make_case(rows=rows, vocab=vocab, dim=dim, k=4)
    hidden = case.hidden.clone().requires_grad_()

    def run():
        out = fused_linear_distill(
            hidden, case.weight, case.teacher, case.labels, spec=DistillSpec(), backend="torch"
        )
        out.loss.backward()

    # Rows lie 2,048 apart.
    assert held(run, hidden, case.weight)[1] <= 4 * 32 * 2048
    assert hidden.grad is not None and case.weight.grad is None


ROWS, VOCAB, DIM = 16, 256, 2048  # so that a gradient of the head is what is largest


def of_head(backend, wants, reduction="mean"):
    """(what may get a gradient, the loss of which these do, what is there before)."""
    case = make_case(rows=ROWS, vocab=VOCAB, dim=DIM, bias=True, temperature=2.0)
    down, up = torch.randn(2, DIM), torch.randn(VOCAB, 2)
    leaves = {"hidden": case.hidden, "weight": case.weight, "bias": case.bias, "right": up}
    for name in wants:
        leaves[name].requires_grad_()
    spec = DistillSpec(temperature=2.0, reduction=reduction)

    def loss():
        left = case.hidden.detach() @ down.t()
        low_rank = LowRank(left, up)
        out = fused_linear_distill(
            case.hidden,
            case.weight,
            case.teacher,
            case.labels,
            spec=spec,
            bias=case.bias,
            low_rank=low_rank,
            backend=backend,
        )
        return out.loss.sum()

    return leaves, loss, [case.hidden, case.weight, case.bias, up, down]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_evaluation_makes_no_gradient(backend, mode, reduction):
    """Not of the head, though it is a parameter, nor of anything else."""
    _, loss, known = of_head(backend, ["hidden", "weight", "bias", "right"], reduction)
    with mode():
        assert held(loss, *known)[1] < VOCAB * DIM // 2
        assert not loss().requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_compiled_evaluation_makes_no_gradient(mode, monkeypatch):
    made = []
    backward = sweep.back_to_hidden, sweep.add_to_weight
    for f in backward:
        monkeypatch.setattr(sweep, f.__name__, lambda *a, f=f, **k: (made.append(f), f(*a, **k))[1])
    _, loss, _ = of_head("torch", ["hidden", "weight", "bias", "right"])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with mode():
        compiled()
    assert not made
    compiled().backward()
    assert set(made) == set(backward)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wants", [["hidden"], ["bias"], ["right"], ["hidden", "right"]])
def test_a_frozen_head_gets_no_gradient_work(wants, reduction):
    leaves, loss, known = of_head("torch", wants, reduction)
    assert held(lambda: loss().backward(), *known)[1] < VOCAB * DIM // 2
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(wants)


@pytest.mark.parametrize("wants", [["weight"], ["weight", "bias"]])
def test_a_trained_head_gets_its_gradient(wants):
    """Also where hidden needs none, as of a frozen backbone."""
    leaves, loss, known = of_head("torch", wants)
    assert held(lambda: loss().backward(), *known)[1] >= 4 * VOCAB * DIM
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == set(wants)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("teacher", ["sparse", "dense", "adaptive"])
@pytest.mark.parametrize(
    "bias, transform",
    [
        (False, LogitTransform()),
        (True, LogitTransform(0.5)),
        (True, LogitTransform(0.5, 20.0)),
    ],
)
def test_peak_is_the_budget(backend, teacher, bias, transform, monkeypatch):
    """Logits, the teacher's, and what bias, scale and soft-cap need; no chunk outlives its turn.

    Beside the budget: blocks of the torch backend, what adaptive_kl ranks, and per-row results.
    """
    block, ranked = 1 << 14, 1 << 14
    rows, of_chunk = (80, 32) if backend == "torch" else (40, 32)  # the interpreter is slow
    budget = 4 * 4032 * of_chunk * (1 if teacher == "sparse" else 2)
    monkeypatch.setitem(sweep.CHUNK_BYTES, "cpu", budget)
    monkeypatch.setattr(torch_rows, "BLOCK_BYTES", block)
    rest = 12 * block
    if backend == "triton":
        from distill_kernels.backends.triton_rows import dense

        monkeypatch.setattr(dense, "RANKED_BYTES", ranked)
        rest = dense.RANKING * ranked
    case = make_case(rows=rows, vocab=4001, dim=4, k=3, bias=bias, transform=transform)
    spec = DistillSpec(alpha=0.5)
    if teacher != "sparse":
        case.teacher = DenseLogits(torch.randn(rows, 4001))
        spec = DistillSpec(divergence="adaptive_kl" if teacher == "adaptive" else "jsd", alpha=0.5)
    hidden = case.hidden.requires_grad_()

    def run():
        fused_linear_distill(
            hidden,
            case.weight,
            case.teacher,
            case.labels,
            spec=spec,
            bias=case.bias,
            logit_transform=transform,
            backend=backend,
        ).loss.backward()

    small = 4 * 4001 + 40 * rows * 10
    known = [hidden, case.weight, *vars(case.teacher).values(), case.bias]
    assert held(run, *known)[0] <= budget + rest + small
