"""What both Triton kernels are made of: logits, the divergences of divergences.py, running sums."""

import torch
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

BLOCK_V = 2048
LOW = tl.constexpr(-1e30)
"""A logit that is none. Its exponential is 0 and its product with 0 is not NaN, as that of -inf is.

Comparisons are written so that a NaN stays one: tl.maximum may drop it, and the loss would look
well. Vocabularies are swept to a width that is a multiple of 16, so that loads are wide.
"""


def launch_options(hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """Left alone, ptxas holds some variants to 40 registers and spills. ROCm knows no such cap."""
    return {"num_warps": 8} if hip else {"num_warps": 8, "maxnreg": 128}


@triton.jit
def head_logits(
    raw,
    bias_ptr,
    v,
    width,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """The model's logits from the head's products, as LogitTransform has it."""
    z = raw
    if HAS_BIAS:
        z += tl.load(bias_ptr + v, mask=(v >= 0) & (v < width), other=0.0)
    if SCALED:
        z *= scale
    if CAPPED:
        x = z / softcap
        e = tl.exp(-2.0 * tl.abs(x))
        z = softcap * tl.where(x < 0, e - 1.0, 1.0 - e) / (1.0 + e)
    return z


@triton.jit
def to_product(grad, z, scale, softcap, SCALED: tl.constexpr, CAPPED: tl.constexpr):
    """d loss / d logits brought back to the head's products; z as head_logits gave it."""
    if CAPPED:
        x = z / softcap
        grad *= 1.0 - x * x
    if SCALED:
        grad *= scale
    return grad


@triton.jit
def bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE: tl.constexpr):
    """(value, pull) of bins, as divergences.bin_terms; keep = 1 - mix, weight for adaptive_kl."""
    log_p = tl.where(log_p < -100.0, -100.0, log_p)
    log_q = tl.where(log_q < LOW, LOW, log_q)
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
        over = tl.where(ratio > 60.0, -tl.log(mix), ratio - lift)
        blend = keep * q + mix * p
        if DIVERGENCE == 2:
            value = _kl_term_close(p, blend, over) / keep
            value += _kl_term_close(q, blend, -lift) / mix
            pull = -q * lift / mix
        elif DIVERGENCE == 3:
            value = kl_term(p, blend, over)
            pull = -keep * p * tl.exp(-lift)
        else:
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
    return tl.where(tl.abs(r) < 0.1, a * r * r * near, kl_term(a, b, r))


@triton.jit
def _log_mix(ratio, mix, keep):
    """log(keep + mix exp(ratio)); small results keep their digits, since the jsd divides by mix."""
    lifted = tl.exp(tl.where(ratio > 60.0, 60.0, ratio))
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
def add_to_lanes(z, v, top, at, sum_t, sum_ts, sum_1, inv_t, TEMPERED: tl.constexpr):
    """Running (max, its index, sum e^s, sum e^s s, sum e^z) of every lane; s = (z - max) / T.

    No lane looks at another before `over_lanes`. z holds LOW where there is nothing; what a lane
    gathers before its first logit is multiplied by 0 there. One exponential a logit, two where T
    is not 1; the last sum is left alone where it is.
    """
    rise = z - top
    rises = rise > 0
    s = rise * inv_t
    e = tl.exp(-tl.abs(s))
    sum_ts = tl.where(rises, e * (sum_ts - s * sum_t), sum_ts + e * s)
    sum_t = tl.where(rises, e * sum_t + 1.0, sum_t + e)
    if TEMPERED:
        e = tl.exp(-tl.abs(rise))
        sum_1 = tl.where(rises, e * sum_1 + 1.0, sum_1 + e)
    return tl.where(rises, z, top), tl.where(rises, v, at), sum_t, sum_ts, sum_1


@triton.jit
def over_lanes(top, at, sum_t, sum_ts, sum_1, inv_t, TEMPERED: tl.constexpr):
    """(max, the lowest index that has it, the sums) over lanes; LOW, -1 and zeros where none is."""
    best = tl.max(top, 0)
    some = best > LOW
    index = tl.min(tl.where(top == best, at, 2147483647), 0)
    step = (top - best) * inv_t
    fade = tl.where(some, tl.exp(step), 0.0)
    all_ts = tl.sum(fade * (sum_ts + step * sum_t), 0)
    all_t = tl.sum(fade * sum_t, 0)
    all_1 = 0.0
    if TEMPERED:
        all_1 = tl.sum(tl.where(some, tl.exp(top - best), 0.0) * sum_1, 0)
    return best, tl.where(some, index, -1).to(tl.int64), all_t, all_ts, all_1
