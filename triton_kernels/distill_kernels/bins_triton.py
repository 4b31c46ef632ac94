"""What both Triton kernels are made of: the divergences of divergences.py, and running sums."""

import triton
import triton.language as tl

CODES = {
    "forward_kl": 0,
    "reverse_kl": 1,
    "jsd": 2,
    "skew_forward_kl": 3,
    "skew_reverse_kl": 4,
    "tvd": 5,
    "adaptive_kl": 6,
}

BLOCK_V = 4096
LAUNCH = {"num_warps": 8, "maxnreg": 128}
"""Left to itself, ptxas holds some variants to 40 registers and spills."""


@triton.jit
def bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE: tl.constexpr):
    """(value, pull) of bins, as divergences.bin_terms; keep = 1 - mix, weight for adaptive_kl."""
    log_p = tl.maximum(log_p, -100.0)
    p = tl.exp(log_p)
    q = tl.exp(log_q)
    ratio = log_p - log_q
    if DIVERGENCE == 0:
        value = kl_term(p, q, ratio)
        pull = -p
    elif DIVERGENCE == 1:
        value = kl_term(q, p, -ratio)
        pull = -q * ratio
    elif DIVERGENCE == 5:
        value = 0.5 * tl.abs(p - q)
        pull = 0.5 * tl.where(q > p, q, tl.where(q < p, -q, 0.0))
    elif DIVERGENCE == 6:
        value = weight * kl_term(p, q, ratio) + (1.0 - weight) * kl_term(q, p, -ratio)
        pull = -weight * p - (1.0 - weight) * q * ratio
    else:
        lift = _log_mix(ratio, mix, keep)
        blend = keep * q + mix * p
        if DIVERGENCE == 2:
            value = _kl_term_close(p, blend, ratio - lift) / keep
            value += _kl_term_close(q, blend, -lift) / mix
            pull = -q * lift / mix
        elif DIVERGENCE == 3:
            value = kl_term(p, blend, ratio - lift)
            pull = -keep * p * tl.exp(-lift)
        else:
            value = kl_term(q, blend, -lift)
            pull = -q * (lift + keep * tl.exp(-lift))
    return value, pull


@triton.jit
def kl_term(a, b, r):
    """b - a + a r with r = log(a/b), never negative."""
    return tl.maximum(b - a + a * r, 0.0)


@triton.jit
def _kl_term_close(a, b, r):
    """kl_term with all its digits where a and b are close, for those that are then divided."""
    near = 0.5 - r * (1.0 / 6 - r * (1.0 / 24 - r * (1.0 / 120 - r / 720)))
    return tl.where(tl.abs(r) < 0.1, a * r * r * near, kl_term(a, b, r))


@triton.jit
def _log_mix(ratio, mix, keep):
    """log(keep + mix exp(ratio)); small results keep their digits, since the jsd divides by mix."""
    lifted = tl.exp(tl.minimum(ratio, 60.0))
    x = mix * (lifted - 1.0)
    t = x / (2.0 + x)
    t2 = t * t
    series = 2.0 * t * (1.0 + t2 * (1.0 / 3 + t2 * (1.0 / 5 + t2 * (1.0 / 7 + t2 / 9))))
    direct = tl.log(keep + mix * lifted)
    return tl.where(ratio > 60.0, ratio + tl.log(mix), tl.where(tl.abs(x) < 0.25, series, direct))


@triton.jit
def finite(x):
    """0 for -inf: a shift that keeps exp(-inf - shift) at 0 instead of NaN."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def logaddexp(a, b):
    top = finite(tl.maximum(a, b))
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@triton.jit
def add_block(z, top, sum_t, sum_ts, sum_1, inv_t, TEMPERED: tl.constexpr):
    """Running (max, sum e^s, sum e^s s, sum e^z) over blocks; s = (z - max) / T.

    z may hold -inf. The last sum is left alone where T is 1, being the first.
    """
    new_top = tl.maximum(top, tl.max(z, 0))
    shift = finite(new_top)
    # Before the first finite logit there is nothing to rescale, and no old shift to leave.
    moved = tl.where(top == -float("inf"), 0.0, (top - shift) * inv_t)
    s = (z - shift) * inv_t
    e = tl.exp(s)
    fade = tl.exp(moved)
    sum_ts = fade * (sum_ts + moved * sum_t) + tl.sum(tl.where(e > 0, e * s, 0.0), 0)
    sum_t = fade * sum_t + tl.sum(e, 0)
    if TEMPERED:
        step = tl.where(top == -float("inf"), 0.0, top - shift)
        sum_1 = sum_1 * tl.exp(step) + tl.sum(tl.exp(z - shift), 0)
    return new_top, sum_t, sum_ts, sum_1
