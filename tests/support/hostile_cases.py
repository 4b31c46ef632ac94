"""Inputs that nobody means to give.

Logits far apart or all alike, forbidden tokens (-inf), teachers that are certain, agree to the last
digit, or do not sum to one, mixtures next to their ends.
"""

import random
from typing import get_args

import torch
from distill_kernels import DenseLogits, DistillSpec, LogitTransform, SparseTeacher
from distill_kernels.spec import Divergence
from support.kernel_cases import Case

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
        # Of a forbidden token it is infinite.
        label_smoothing=0.0 if bias.isneginf().any() else r.choice([0.0, 0.0, 0.1]),
        support="tail_bucket" if support == "dense" else support,
        reduction="sum",
    )
    return Case(logits, torch.eye(vocab), bias, labels, teacher, transform), spec
