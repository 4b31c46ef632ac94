"""The sweeps over a sparse row's K entries. ids, logp and aside point to the row's first entry."""

import triton
import triton.language as tl

from distill_kernels.backends.triton_rows.bins import bin_terms
from distill_kernels.backends.triton_rows.lanes import finite
from distill_kernels.backends.triton_rows.names import EMPTY, SAMPLED
from distill_kernels.backends.triton_rows.row import head_logits


@triton.jit
def set_aside(
    z_ptr,
    aside_ptr,
    ids_ptr,
    logp_ptr,
    bias_ptr,
    K,
    width,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Keeps the entries' logits in aside, -inf where there is no entry, and marks their places in z
    as EMPTY; a barrier stands after it.

    Returns (how many there are, their largest logit and its id, the teacher's largest logprob, the
    sum of their logits when SMOOTH).
    """
    neg_inf = -float("inf")
    num_entries = 0
    head_max = neg_inf
    head_id = tl.full((), -1, tl.int64)
    teacher_max = neg_inf
    total = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        valid = ids >= 0
        raw = tl.load(z_ptr + ids, mask=valid, other=0.0)
        z = head_logits(raw, bias_ptr, ids, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        z = tl.where(valid, z, neg_inf)
        tl.store(aside_ptr + k, z, mask=k < K)
        num_entries += tl.sum(valid.to(tl.int32), 0)
        best = tl.max(z, 0)
        at = tl.argmax(z, 0)
        best_id = tl.sum(tl.where(tl.arange(0, BLOCK_K) == at, ids, 0), 0)
        head_id = tl.where(best > head_max, best_id, head_id)
        head_max = tl.maximum(head_max, best)
        logp = tl.load(logp_ptr + k, mask=k < K, other=neg_inf)
        teacher_max = tl.maximum(teacher_max, tl.max(tl.where(valid, logp, neg_inf), 0))
        if SMOOTH:
            total += tl.sum(tl.where(valid, z, 0.0), 0)
    tl.debug_barrier()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        tl.store(z_ptr + ids, tl.full((BLOCK_K,), EMPTY, tl.float32), mask=ids >= 0)
    tl.debug_barrier()
    return num_entries, head_max, head_id, teacher_max, total


@triton.jit
def entries_lse(
    aside_ptr, ids_ptr, logp_ptr, K, head_max, teacher_max, inv_t, BLOCK_K: tl.constexpr
):
    """(the student's log-sum-exp over the entries at T, that at 1, the teacher's shift and sum).

    The teacher's log is for the caller to take, late: taken here it costs six registers on sm_80,
    and with 80 three programs share a multiprocessor.
    """
    head_shift = finite(head_max)
    teacher_shift = finite(teacher_max)
    head_sum = 0.0
    head_sum1 = 0.0
    teacher_sum = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        z = tl.load(aside_ptr + k, mask=k < K, other=-float("inf")) - head_shift
        head_sum += tl.sum(tl.exp(z * inv_t), 0)
        head_sum1 += tl.sum(tl.exp(z), 0)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        logp = tl.load(logp_ptr + k, mask=valid, other=-float("inf"))
        teacher_sum += tl.sum(tl.exp(logp - teacher_shift), 0)
    lse = head_shift * inv_t + tl.log(head_sum)
    return lse, head_shift + tl.log(head_sum1), teacher_shift, teacher_sum


@triton.jit
def head_share(
    aside_ptr,
    ids_ptr,
    logp_ptr,
    K,
    norm,
    teacher_lse,
    head_logp,
    gap_of_rest,
    inv_t,
    BLOCK_K: tl.constexpr,
):
    """The weight of adaptive_kl: the share of |p - q| where the logprob is head_logp or more.

    norm, teacher_lse  what the student's s and the teacher's logprobs are normalised by
    """
    gap = gap_of_rest
    gap_head = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        logp = tl.load(logp_ptr + k, mask=valid, other=-float("inf"))
        log_q = tl.load(aside_ptr + k, mask=valid, other=-float("inf")) * inv_t - norm
        here = tl.abs(tl.exp(logp - teacher_lse) - tl.exp(log_q))
        here = tl.where(valid, here, 0.0)
        gap += tl.sum(here, 0)
        gap_head += tl.sum(tl.where(logp >= head_logp, here, 0.0), 0)
    return tl.where(gap > 0, gap_head / gap, 0.5)


@triton.jit
def entry_terms(log_p, log_q, mix, keep, weight, SUPPORT: tl.constexpr, DIVERGENCE: tl.constexpr):
    """(value, pull) of entries; those of draws are their share of a cross-entropy."""
    if SUPPORT == SAMPLED:
        pull = -tl.exp(log_p)
        value = pull * tl.where(log_q < EMPTY, EMPTY, log_q)
    else:
        value, pull = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
    return value, pull
