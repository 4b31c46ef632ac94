"""The divergences of divergences.py, bin by bin, for both kernels."""

import triton
import triton.language as tl

from distill_kernels.backends.triton_rows.names import (
    ADAPTIVE_KL,
    EMPTY,
    FORWARD_KL,
    JSD,
    LARGE_RATIO,
    MIN_LOGPROB,
    REVERSE_KL,
    SKEW_FORWARD_KL,
    SKEW_REVERSE_KL,
    SMALL_RATIO,
    TVD,
)


@triton.jit
def bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE: tl.constexpr):
    """(value, pull) of bins, as divergences.bin_terms; keep = 1 - mix, weight for adaptive_kl."""
    log_p = tl.where(log_p < MIN_LOGPROB, MIN_LOGPROB, log_p)
    log_q = tl.where(log_q < EMPTY, EMPTY, log_q)
    p = tl.exp(log_p)
    q = tl.exp(log_q)
    ratio = log_p - log_q
    if DIVERGENCE == FORWARD_KL:
        value = kl_term(p, q, ratio)
        pull = -p
    elif DIVERGENCE == REVERSE_KL:
        value = kl_term(q, p, -ratio)
        pull = -q * ratio
    elif DIVERGENCE == TVD:
        value = 0.5 * tl.abs(p - q)
        pull = 0.5 * tl.where(q > p, q, tl.where(q < p, -q, 0.0))
    elif DIVERGENCE == ADAPTIVE_KL:
        value = weight * kl_term(p, q, ratio) + (1.0 - weight) * kl_term(q, p, -ratio)
        pull = -weight * p - (1.0 - weight) * q * ratio
    else:
        lift = _log_mix(ratio, mix, keep)
        over = tl.where(ratio > LARGE_RATIO, -tl.log(mix), ratio - lift)
        blend = keep * q + mix * p
        if DIVERGENCE == JSD:
            value = _kl_term_close(p, blend, over) / keep
            value += _kl_term_close(q, blend, -lift) / mix
            pull = -q * lift / mix
        elif DIVERGENCE == SKEW_FORWARD_KL:
            value = kl_term(p, blend, over)
            pull = -keep * p * tl.exp(-lift)
        else:
            tl.static_assert(DIVERGENCE == SKEW_REVERSE_KL)
            value = kl_term(q, blend, -lift)
            pull = -q * (lift + keep * tl.exp(-lift))
    return value, pull


@triton.jit
def kl_term(a, b, r):
    """b - a + a r with r = log(a/b), never negative."""
    value = b - a + a * r
    return tl.where(value < 0, 0.0, value)


@triton.jit
def _kl_term_close(a, b, r):
    """kl_term with all its digits where a and b are close, for those that are then divided."""
    near = 0.5 - r * (1.0 / 6 - r * (1.0 / 24 - r * (1.0 / 120 - r / 720)))
    return tl.where(tl.abs(r) < SMALL_RATIO, a * r * r * near, kl_term(a, b, r))


@triton.jit
def _log_mix(ratio, mix, keep):
    """log(keep + mix exp(ratio)); small results keep their digits, since the jsd divides by mix."""
    lifted = tl.exp(tl.where(ratio > LARGE_RATIO, LARGE_RATIO, ratio))
    x = mix * (lifted - 1.0)
    t = x / (2.0 + x)
    t2 = t * t
    series = 2.0 * t * (1.0 + t2 * (1.0 / 3 + t2 * (1.0 / 5 + t2 * (1.0 / 7 + t2 / 9))))
    direct = tl.log(keep + mix * lifted)
    return tl.where(
        ratio > LARGE_RATIO, ratio + tl.log(mix), tl.where(tl.abs(x) < 0.25, series, direct)
    )
