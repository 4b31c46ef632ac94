"""The divergences, bin by bin: values, and slopes in closed form.

p and q are the teacher's and the student's probabilities of a row's bins and sum to one each.

    forward_kl       sum p log(p/q)                          Hinton et al. 2015, arXiv 1503.02531
    reverse_kl       sum q log(q/p)                          MiniLLM, arXiv 2306.08543
    jsd              [b KL(p||m) + (1-b) KL(q||m)] / (b (1-b)),  m = b p + (1-b) q
                                                             GKD, arXiv 2306.13649
    skew_forward_kl  KL(p || s p + (1-s) q)                  DistiLLM, arXiv 2402.03898
    skew_reverse_kl  KL(q || s q + (1-s) p)                  DistiLLM, arXiv 2402.03898
    tvd              1/2 sum |p - q|                         f-DISTILL, arXiv 2307.15190
    adaptive_kl      w KL(p||q) + (1-w) KL(q||p)             AKL, arXiv 2404.02657
                     w = sum_head |p-q| / sum |p-q|, taken as a constant;
                     head = the likeliest tokens of the teacher that together hold akl_mu

The KLs are sums of b - a + a log(a/b). For probabilities that is a log(a/b); where the teacher's do
not sum to one (rounded logprobs of a server) its bins are masses, as they were given, and the sum
is still never negative. The gradient is that of a log(a/b) either way.

A teacher's logprob below -100 is taken as -100, a student's below -1e30 as that: a KL towards a
probability of 0 is large and not infinite, and 0 log 0 is 0.

The jsd of the literature tends to 0 with b and jumps to a KL at b = 0 and 1. Divided by b (1-b) it
is continuous: its limits are forward KL at 0 and reverse KL at 1, as b means in TRL and Liger.

Slopes: with s the logit of a bin (its log-sum-exp when it holds many tokens) and u = dD/dq,

    dD/ds_i = q_i (u_i - sum_j q_j u_j)

in which a multiple of q added to q u cancels. So each divergence is a pair of summands:
its value and its pull, q u up to such a multiple.
"""

import math

import torch
from torch import Tensor

from distill_kernels.shard import WHOLE, Extent, VocabShard
from distill_kernels.spec import DistillSpec

MIN_LOGPROB = -100.0
"""Teacher logprobs below are taken as this, so that a reverse KL is finite where p is 0."""
EMPTY = -1e30
"""A logit whose exponential is 0 and whose product with 0 is not NaN, as that of -inf is."""
LARGE_RATIO = 60.0
SMALL_RATIO = 0.1
NEAR_END = 0.01
LIMIT = 1e-9
"""Shares of a mixture nearer to 0 or 1 are taken as these, which are their limits."""


def divergence(
    log_p: Tensor,
    log_q: Tensor,
    spec: DistillSpec,
    *,
    mask: Tensor | None = None,
    has_tail: bool = False,
    shard: VocabShard = WHOLE,
    extent: Extent | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [C] in nats, dD/ds [C, B], q [C, B]) from logprobs of bins [C, B].

    mask      bool [C, B]; False = no bin
    has_tail  the last bin is the rest of the vocabulary
    shard     the other bins are on other processes, as `extent` says
    """
    log_p = log_p.clamp_min(MIN_LOGPROB)
    if mask is not None:
        log_p = log_p.masked_fill(~mask, 0.0)
        log_q = log_q.masked_fill(~mask, 0.0)
    p, q = log_p.exp(), log_q.exp()
    if mask is not None:
        p, q = p * mask, q * mask
    weight = None
    if spec.divergence == "adaptive_kl":
        weight = adaptive_weight(p, q, spec.akl_mu, has_tail, shard, extent)
    value, pull = bin_terms(p, q, log_p - log_q, spec, weight)
    total = shard.sum(pull.sum(-1, keepdim=True))
    return shard.sum(value.sum(-1)), torch.addcmul(pull, q, total, value=-1), q


def plain_divergence(
    log_p: Tensor,
    log_q: Tensor,
    spec: DistillSpec,
    mask: Tensor | None = None,
    has_tail: bool = False,
) -> Tensor:
    """D as its equation reads, [N], with which `divergence` must agree; arguments as there."""
    if mask is None:
        mask = torch.ones_like(log_p, dtype=torch.bool)
    log_p = log_p.clamp_min(MIN_LOGPROB).masked_fill(~mask, 0.0)
    log_q = log_q.clamp_min(EMPTY).masked_fill(~mask, 0.0)
    p, q = log_p.exp() * mask, log_q.exp() * mask
    name, mix = resolve(spec)

    def kl(a: Tensor, b: Tensor, log_ratio: Tensor) -> Tensor:
        return (b - a + a * log_ratio).sum(-1)

    ratio = log_p - log_q
    if name == "forward_kl":
        return kl(p, q, ratio)
    if name == "reverse_kl":
        return kl(q, p, -ratio)
    if name == "tvd":
        return 0.5 * (p - q).abs().sum(-1)
    if name == "adaptive_kl":
        weight = adaptive_weight(p.detach(), q.detach(), spec.akl_mu, has_tail).squeeze(-1)
        return weight * kl(p, q, ratio) + (1 - weight) * kl(q, p, -ratio)
    m = (1 - mix) * q + mix * p
    # From log(p/q) and not from m, which may underflow, and near an end is all but one of them.
    p_over_m, q_over_m = -log_mix(-ratio, 1 - mix), -log_mix(ratio, mix)
    if name == "jsd":  # m - p and m - q cancel between the two
        return (p * p_over_m / (1 - mix) + q * q_over_m / mix).sum(-1)
    if name == "skew_forward_kl":
        return kl(p, m, p_over_m)
    assert name == "skew_reverse_kl", name
    return kl(q, m, q_over_m)


def bin_terms(
    p: Tensor, q: Tensor, ratio: Tensor, spec: DistillSpec, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(value, pull) of every bin; ratio = log(p/q), and 0 with p = q = 0 where there is no bin.

    weight  what `adaptive_weight` gives, for adaptive_kl
    """
    name, mix = resolve(spec)
    if name == "forward_kl":
        return kl_term(p, q, ratio), -p
    if name == "reverse_kl":
        return kl_term(q, p, -ratio), -q * ratio
    if name == "tvd":
        return 0.5 * (p - q).abs(), 0.5 * q * (q - p).sign()
    if name == "adaptive_kl":
        assert weight is not None
        value = weight * kl_term(p, q, ratio) + (1 - weight) * kl_term(q, p, -ratio)
        return value, -weight * p - (1 - weight) * q * ratio

    lift = log_mix(ratio, mix)
    # log(p / blend): the difference has no digits left where p is all of the blend.
    over = torch.where(ratio > LARGE_RATIO, -math.log(mix), ratio - lift)
    blend = (1 - mix) * q + mix * p
    if name == "jsd":
        term = kl_term_close if min(mix, 1 - mix) < NEAR_END else kl_term
        to_teacher = term(p, blend, over) / (1 - mix)
        return to_teacher + term(q, blend, -lift) / mix, -q * lift / mix
    if name == "skew_forward_kl":
        return kl_term(p, blend, over), -(1 - mix) * p * (-lift).exp()
    assert name == "skew_reverse_kl", name
    return kl_term(q, blend, -lift), -q * (lift + (1 - mix) * (-lift).exp())


def resolve(spec: DistillSpec) -> tuple[str, float]:
    """(the divergence, the teacher's share of the mixture it compares with), limits named."""
    name = spec.divergence
    if name == "jsd" and spec.beta < LIMIT:
        return "forward_kl", 0.0
    if name == "jsd":
        return name if spec.beta < 1 - LIMIT else "reverse_kl", spec.beta
    if name in ("skew_forward_kl", "skew_reverse_kl") and spec.skew < LIMIT:
        return name.removeprefix("skew_"), 0.0
    return name, 1 - spec.skew if name == "skew_reverse_kl" else spec.skew


def kl_term(a: Tensor, b: Tensor, log_ratio: Tensor) -> Tensor:
    """b - a + a log(a/b), whose sum over bins is KL(a || b); never negative.

    No term is, but for rounding, so clamping each of them costs no more than rounding does.
    """
    return torch.addcmul(b - a, a, log_ratio).clamp_min_(0.0)


def kl_term_close(a: Tensor, b: Tensor, log_ratio: Tensor) -> Tensor:
    """kl_term with all its digits where a and b are close, for those that are then divided.

    There b - a is rounding, and a series in log(a/b) is not.
    """
    r = log_ratio
    near = 1 / 2 - r * (1 / 6 - r * (1 / 24 - r * (1 / 120 - r / 720)))
    return torch.where(r.abs() < SMALL_RATIO, a * r * r * near, kl_term(a, b, r))


def log_mix(ratio: Tensor, share: float) -> Tensor:
    """log(((1 - share) q + share p) / q), with ratio = log(p/q).

    Small shares keep their digits, since the jsd divides by the share.
    """
    near = ratio.clamp_max(LARGE_RATIO)
    if share < 0.5:
        direct = torch.log1p(share * torch.expm1(near))
    else:
        direct = torch.log((1 - share) + share * near.exp())
    return torch.where(ratio > LARGE_RATIO, ratio + math.log(share), direct)


def adaptive_weight(
    p: Tensor,
    q: Tensor,
    mu: float,
    has_tail: bool,
    shard: VocabShard = WHOLE,
    extent: Extent | None = None,
) -> Tensor:
    """Share of the gap |p - q| that lies in the teacher's head, [C, 1]; 1/2 where there is none.

    The rest of the vocabulary is never part of the head, however much it holds. Of a shard, every
    member ranks the teacher's whole vocabulary, which is gathered for the rows at hand.
    """
    gap = (p - q).abs()
    total = shard.sum(gap.sum(-1, keepdim=True))
    entries = slice(-1) if has_tail else slice(None)
    p, gap = p[:, entries], gap[:, entries]
    whole = p if extent is None else shard.gather(p, extent)
    head = shard.sum((gap * (p >= head_threshold(whole, mu))).sum(-1, keepdim=True))
    return torch.where(total > 0, head / total.clamp_min(torch.finfo(p.dtype).tiny), 0.5)


def head_threshold(p: Tensor, mu: float) -> Tensor:
    """Probability of the token with which the likeliest ones reach a mass of mu, [C, 1]."""
    ordered = p.sort(-1, descending=True).values
    before = ordered.cumsum(-1) - ordered
    last = (before < mu).sum(-1, keepdim=True) - 1
    return ordered.gather(-1, last.clamp_min(0))
