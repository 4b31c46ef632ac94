"""Running sums of a sweep of the vocabulary: every lane has its own, and they meet at the end.

Comparisons are written so that a NaN stays one: tl.maximum may drop it, and the loss would look
well.
"""

import triton
import triton.language as tl

from distill_kernels.backends.triton_rows.names import EMPTY


@triton.jit
def finite(x):
    """0 for -inf: a shift that keeps exp(-inf - shift) at 0 instead of NaN."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def logaddexp(a, b):
    top = finite(tl.maximum(a, b))
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@triton.jit
def empty_lanes(BLOCK_V: tl.constexpr):
    """What `add_to_lanes` begins with."""
    zeros = tl.zeros((BLOCK_V,), tl.float32)
    top = tl.full((BLOCK_V,), EMPTY, tl.float32)
    return top, tl.zeros((BLOCK_V,), tl.int32), zeros, zeros, zeros


@triton.jit
def add_to_lanes(z, v, top, at, sum_t, sum_ts, sum_1, inv_t, TEMPERED: tl.constexpr):
    """Running (max, its index, sum e^s, sum e^s s, sum e^z) of every lane; s = (z - max) / T.

    No lane looks at another before `over_lanes`. z holds EMPTY where there is nothing; what a lane
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
    """(max, the lowest index that has it, sums) over lanes; EMPTY, -1 and zeros where none is."""
    best = tl.max(top, 0)
    some = best > EMPTY
    index = tl.min(tl.where(top == best, at, 2147483647), 0)
    step = (top - best) * inv_t
    fade = tl.where(some, tl.exp(step), 0.0)
    all_ts = tl.sum(fade * (sum_ts + step * sum_t), 0)
    all_t = tl.sum(fade * sum_t, 0)
    all_1 = 0.0
    if TEMPERED:
        all_1 = tl.sum(tl.where(some, tl.exp(top - best), 0.0) * sum_1, 0)
    return best, tl.where(some, index, -1).to(tl.int64), all_t, all_ts, all_1
