"""Inputs that nobody means to give, from a random search: each backend against the formula."""

import random

import pytest
import torch
from distill_kernels import fused_linear_distill
from support.hostile_cases import INFINITE, hostile
from support.kernel_cases import oracle

EPS = torch.finfo(torch.float32).eps


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
