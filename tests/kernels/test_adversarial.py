"""Inputs that nobody means to give, from a random search: each backend against the formula.

Logits far apart or all alike, forbidden tokens (-inf), teachers that are certain, agree to the last
digit, or do not sum to one, mixtures next to their ends.
"""

import random
from typing import get_args

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    LogitTransform,
    SparseTeacher,
    fused_linear_distill,
)
from distill_kernels.spec import Divergence
from support.kernel_cases import Case, oracle

EPS = torch.finfo(torch.float32).eps
INFINITE = 1e20
ENDS = [0.0, 1e-8, 1e-5, 1e-3, 0.3, 0.5, 0.99, 0.9999999]


def hostile(seed: int) -> tuple[Case, DistillSpec]:
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, vocab = r.randint(1, 4), r.choice([2, 3, 17, 70])
    temperature = r.choice([0.3, 1.0, 1.0, 2.0, 10.0])
    logits = torch.randn(rows, vocab, generator=g) * r.choice([0.0, 0.1, 3.0, 30.0, 200.0])
    if r.random() < 0.2:
        logits = logits.round()  # ties
    bias = torch.zeros(vocab)
    labels = torch.randint(0, vocab, (rows,), generator=g)
    transform = r.choice([LogitTransform()] * 3 + [LogitTransform(0.5), LogitTransform(1.0, 30.0)])
    forbidden = torch.rand(vocab, generator=g) < 0.3
    forbidden[labels] = False
    if r.random() < 0.3:
        bias[forbidden] = -torch.inf
    theirs = torch.randn(rows, vocab, generator=g) * r.choice([0.1, 3.0, 30.0, 500.0])
    divergence = r.choice(get_args(Divergence))
    if r.random() < 0.2 and divergence != "tvd":  # whose slope jumps where they agree
        theirs = transform(logits)
    if r.random() < 0.3:
        theirs = theirs.masked_fill(forbidden, -torch.inf)
    support = r.choice(["tail_bucket", "renormalize", "dense"])
    if support == "dense":
        teacher = DenseLogits(theirs)
    else:
        k = r.randint(1, vocab)
        full = (theirs.double() / temperature).log_softmax(-1)
        top = full.topk(k) if r.random() < 0.7 else torch.rand(full.shape, generator=g).topk(k)
        ids, log_p = top.indices, full.gather(1, top.indices)
        if support == "renormalize":
            log_p = log_p.clamp_min(-1e4)
        tail = full.scatter(1, ids, -torch.inf).logsumexp(-1)
        log_p, tail = (x + r.choice([0.0, 0.0, -0.7, 0.005]) for x in (log_p, tail))
        if r.random() < 0.3 and k > 1:
            ids[0, k // 2 :], log_p[0, k // 2 :] = -1, -torch.inf
        teacher = SparseTeacher(ids, log_p.clamp_max(0.009).float(), tail.clamp_max(0.009).float())
    spec = DistillSpec(
        divergence=divergence,
        temperature=temperature,
        alpha=r.choice([1.0, 1.0, 0.6, 0.0]),
        beta=r.choice([*ENDS, 1.0]),
        skew=r.choice(ENDS),
        akl_mu=r.choice([0.05, 0.5, 0.95]),
        support="tail_bucket" if support == "dense" else support,
        reduction="sum",
    )
    return Case(logits, torch.eye(vocab), bias, labels, teacher, transform), spec


def faults(backend: str, seeds: range) -> list[str]:
    found = []
    for seed in seeds:
        case, spec = hostile(seed)
        exact, (slope, _, _) = oracle(case, spec)
        if exact.isnan():  # conditioned on entries that the student forbids, all of them
            continue
        hidden = case.hidden.clone().requires_grad_()
        out = fused_linear_distill(
            hidden,
            case.weight,
            case.teacher,
            case.labels,
            spec=spec,
            bias=case.bias,
            logit_transform=case.transform,
            backend=backend,
        )
        out.loss.backward()
        logits = case.transform(case.hidden + case.bias)
        if exact > INFINITE:  # a token that the teacher wants and the student forbids
            if not (out.loss > INFINITE and torch.isfinite(hidden.grad).all()):
                found.append(f"seed {seed}: {out.loss} where it is infinite; {spec}")
            continue
        q = (logits.double() / spec.temperature).log_softmax(-1)
        entropy = torch.special.entr(q.exp()).sum()
        # What is known of a logit is known to its rounding, and a slope is a product with a ratio.
        largest = logits.masked_fill(logits == -torch.inf, 0.0).abs().max().item()
        size = 20 * EPS * (1 + largest / spec.temperature) * max(spec.temperature, 1.0) ** 2
        for name, seen, wanted, ratio in (
            ("loss", out.loss.detach(), exact, 1.0),
            ("slope", hidden.grad, slope, 100.0),
            ("entropy", out.entropy, entropy, 1.0),
        ):
            error = (seen.double() - wanted).abs().max().item()
            if not error <= size * ratio * len(case.labels) + 1e-4 * wanted.abs().max().item():
                found.append(f"seed {seed} {name}: {error} of {wanted.abs().max():.3g}; {spec}")
    return found


@pytest.mark.parametrize("backend, many", [("reference", 300), ("torch", 300), ("triton", 60)])
def test_hostile_inputs(backend, many):
    """Always the same cases: whoever finds another fault adds its seed to the range."""
    assert not faults(backend, range(many))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_many_hostile_inputs(backend):
    start = random.randrange(10**9)
    assert not faults(backend, range(start, start + 1500))
