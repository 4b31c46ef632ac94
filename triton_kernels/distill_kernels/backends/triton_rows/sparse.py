"""A sparse teacher's rows: two sweeps of the vocabulary, between them the K entries.

    sweep over the entries    keep their logits aside, mark their places as empty
    sweep over the vocabulary running log-sum-exp, entropy and argmax of what is left: the rest
    sweep over the entries    divergence and its row scalars
    sweep over the vocabulary write the gradient off the entries, in place
    sweep over the entries    write theirs

What is read is the head's products; bias, scale and soft-cap are applied on the way in, and undone
in the gradient on the way out. Barriers stand between sweeps that touch the same addresses. The
first sweep of the vocabulary needs none: every lane has its own running sums. All arithmetic is
fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_kernels.backends.triton_rows.bins import bin_terms
from distill_kernels.backends.triton_rows.entries import (
    entries_lse,
    entry_terms,
    head_share,
    set_aside,
)
from distill_kernels.backends.triton_rows.lanes import (
    add_to_lanes,
    empty_lanes,
    logaddexp,
    over_lanes,
)
from distill_kernels.backends.triton_rows.launch import absent, arguments
from distill_kernels.backends.triton_rows.names import (
    ADAPTIVE_KL,
    EMPTY,
    RENORMALIZE,
    SAMPLED,
    TAIL_BUCKET,
)
from distill_kernels.backends.triton_rows.row import (
    cross_entropy,
    head_logits,
    read_label,
    store_values,
    to_product,
)
from distill_kernels.chunk import Chunk, RowValues
from distill_kernels.divergences import head_threshold
from distill_kernels.spec import DistillSpec
from distill_kernels.teacher import SparseTeacher, teacher_top1

BLOCKS_K = (64, 256)


def sparse_rows(chunk: Chunk, teacher: SparseTeacher, grad_CV: Tensor) -> RowValues:
    """Writes scale times d loss / d product into grad_CV where the chunk has a scale.

    grad_CV  the chunk's logits or their `narrow_view`
    """
    spec = chunk.spec
    num_rows, num_entries = teacher.ids.shape
    none = absent(chunk)
    out_5C = torch.empty(5, num_rows, device=none.device)
    tail, entropy = (
        none if x is None else x.float().contiguous()
        for x in (teacher.tail_logprob, teacher.entropy)
    )
    _sparse_kernel[(num_rows,)](
        **arguments(chunk, grad_CV, out_5C),
        ids_ptr=teacher.ids.contiguous(),
        logp_ptr=teacher.logprobs.float().contiguous(),
        tail_ptr=tail,
        entropy_ptr=entropy,
        head_ptr=_head_logprob(teacher, spec) if spec.divergence == "adaptive_kl" else none,
        top_ptr=teacher_top1(teacher),
        aside_ptr=torch.empty(num_rows, num_entries, device=none.device),
        K=num_entries,
        SUPPORT=spec.support,
        HAS_ENTROPY=teacher.entropy is not None,
        BLOCK_K=BLOCKS_K[num_entries > BLOCKS_K[0]],
    )
    return RowValues(*out_5C.unbind())


def _head_logprob(teacher: SparseTeacher, spec: DistillSpec) -> Tensor:
    """The lowest of the teacher's logprobs that belong to its head, fp32 [C]."""
    logprobs = teacher.logprobs.float().masked_fill(teacher.ids < 0, -torch.inf)
    p = logprobs.softmax(-1).nan_to_num(0.0)
    if spec.support == "tail_bucket":
        p = logprobs.exp()
    return logprobs.masked_fill(p < head_threshold(p, spec.akl_mu), torch.inf).amin(-1)


# How many rows and entries a batch has changes from step to step, and where a slice of a small
# input begins with it: neither is worth a compilation.
SMALL = ["ids_ptr", "logp_ptr", "tail_ptr", "entropy_ptr", "head_ptr", "label_ptr", "top_ptr"]
SMALL += ["aside_ptr", "scale_ptr", "out_ptr"]


@triton.jit(do_not_specialize=["num_rows", "K"], do_not_specialize_on_alignment=SMALL)
def _sparse_kernel(
    z_ptr,  # [C, width] fp32, the student's products, overwritten
    z_stride,
    grad_ptr,  # [C, width], in the memory of z
    grad_stride,
    bias_ptr,  # [width] fp32, read when HAS_BIAS
    ids_ptr,  # [C, K] int64, -1 = no entry
    logp_ptr,  # [C, K] fp32
    tail_ptr,  # [C] fp32, read for tail_bucket
    entropy_ptr,  # [C] fp32, the teacher's, read when HAS_ENTROPY
    head_ptr,  # [C] fp32, read for adaptive_kl
    label_ptr,  # [C] int64
    top_ptr,  # [C] int64, the teacher's likeliest token
    aside_ptr,  # [C, K] fp32 scratch
    scale_ptr,  # [C] fp32, read when WITH_GRAD
    out_ptr,  # [5, C] fp32: loss, kd, ce, top1, the student's entropy
    num_rows,
    V,
    width,
    K,
    temperature,
    alpha,
    mix,
    keep,
    smoothing,
    scale,
    softcap,
    DIVERGENCE: tl.constexpr,
    SUPPORT: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTH: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    grad_ptr += row * grad_stride
    ids_ptr += row * K
    logp_ptr += row * K
    aside_ptr += row * K
    inv_t = 1.0 / temperature
    neg_inf = -float("inf")

    label, labelled, label_logit = read_label(
        label_ptr, row, z_ptr, bias_ptr, width, scale, softcap, HAS_BIAS, SCALED, CAPPED
    )

    num_entries, head_max, head_id, teacher_max, total_logit = set_aside(
        z_ptr,
        aside_ptr,
        ids_ptr,
        logp_ptr,
        bias_ptr,
        K,
        width,
        scale,
        softcap,
        HAS_BIAS,
        SCALED,
        CAPPED,
        SMOOTH,
        BLOCK_K,
    )
    taught = labelled & (num_entries > 0)
    has_rest = num_entries < V
    lse_head, lse_head1, teacher_shift, teacher_sum = entries_lse(
        aside_ptr, ids_ptr, logp_ptr, K, head_max, teacher_max, inv_t, BLOCK_K
    )

    # Vocabulary: running sums of the rest.
    lane_top, lane_at, lane_t, lane_ts, lane_1 = empty_lanes(BLOCK_V)
    lane_total = tl.zeros((BLOCK_V,), tl.float32)
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=EMPTY)
        gone = (raw == EMPTY) | (v >= V)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        if SMOOTH:
            lane_total += tl.where(gone, 0.0, z)
        z = tl.where(gone | (z < EMPTY), EMPTY, z)
        lane_top, lane_at, lane_t, lane_ts, lane_1 = add_to_lanes(
            z, v, lane_top, lane_at, lane_t, lane_ts, lane_1, inv_t, TEMPERED
        )
    rest_max, rest_id, rest_sum, rest_sum_s, rest_sum1 = over_lanes(
        lane_top, lane_at, lane_t, lane_ts, lane_1, inv_t, TEMPERED
    )
    if SMOOTH:
        total_logit += tl.sum(lane_total, 0)
    rest_shift = tl.where(rest_max > EMPTY, rest_max, 0.0)
    lse_rest = rest_shift * inv_t + tl.log(rest_sum)
    lse = logaddexp(lse_rest, lse_head)
    if TEMPERED:
        lse1 = logaddexp(rest_shift + tl.log(rest_sum1), lse_head1)
    else:
        lse1 = lse
    rest_q = tl.exp(rest_shift * inv_t - lse)
    # Terms of the entropy are small; lse less the mean of s would be a difference of large ones.
    entropy = rest_q * (rest_sum * (lse - rest_shift * inv_t) - rest_sum_s)
    entropy = tl.where(rest_sum > 0, entropy, 0.0)

    # Bins: the divergence and the sum of its pulls.
    teacher_lse = 0.0
    norm = lse
    if SUPPORT == RENORMALIZE:
        teacher_lse = teacher_shift + tl.log(teacher_sum)
        norm = lse_head
    log_pt = 0.0
    log_qt = 0.0
    if SUPPORT == TAIL_BUCKET:
        log_pt = tl.where(has_rest, tl.load(tail_ptr + row), 0.0)
        log_qt = tl.where(has_rest, lse_rest - lse, 0.0)
    weight = 0.5
    if DIVERGENCE == ADAPTIVE_KL:
        gap = 0.0
        if SUPPORT == TAIL_BUCKET:
            gap = tl.where(has_rest, tl.abs(tl.exp(log_pt) - tl.exp(log_qt)), 0.0)
        head_logp = tl.load(head_ptr + row)
        weight = head_share(
            aside_ptr, ids_ptr, logp_ptr, K, norm, teacher_lse, head_logp, gap, inv_t, BLOCK_K
        )
    kd = 0.0
    pull = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        s = tl.load(aside_ptr + k, mask=valid, other=0.0) * inv_t
        log_q = s - norm
        log_p = tl.load(logp_ptr + k, mask=valid, other=0.0) - teacher_lse
        values, pulls = entry_terms(log_p, log_q, mix, keep, weight, SUPPORT, DIVERGENCE)
        kd += tl.sum(tl.where(valid, values, 0.0), 0)
        pull += tl.sum(tl.where(valid, pulls, 0.0), 0)
        entropy += tl.sum(tl.where(valid & (s != neg_inf), tl.exp(s - lse) * (lse - s), 0.0), 0)
    rest_scale = 0.0
    if SUPPORT == TAIL_BUCKET:
        value, tail_pull = bin_terms(log_pt, log_qt, mix, keep, weight, DIVERGENCE)
        kd += tl.where(has_rest, value, 0.0)
        pull += tl.where(has_rest, tail_pull, 0.0)
        slope = tail_pull - tl.exp(log_qt) * pull
        rest_scale = tl.where(has_rest & (rest_sum > 0), slope / rest_sum, 0.0)
    if SUPPORT == SAMPLED:
        rest_scale = -pull * rest_q
    if HAS_ENTROPY:
        kd -= tl.load(entropy_ptr + row)

    kd = tl.where(taught, kd, 0.0)
    nll, ce = cross_entropy(lse1, label_logit, total_logit, V, labelled, smoothing, SMOOTH)
    kd_weight = tl.where(taught, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, tl.where(taught, 1.0 - alpha, 1.0), 0.0)
    student_top = tl.where(head_max >= rest_max, head_id, rest_id)
    agree = taught & (student_top == tl.load(top_ptr + row))
    store_values(
        out_ptr,
        num_rows,
        row,
        kd,
        nll,
        ce,
        agree,
        entropy,
        labelled,
        kd_weight,
        ce_weight,
        temperature,
    )
    if not WITH_GRAD:
        return

    # Vocabulary: the gradient off the entries, whose places are written too, and then anew.
    # A block is written at or below where it was read, so all of it must be read before.
    row_scale = tl.load(scale_ptr + row)
    kd_weight *= row_scale
    ce_weight *= row_scale
    rest_scale = kd_weight * rest_scale
    ce_scale = ce_weight * tl.exp(rest_shift - lse1)
    even_slope = ce_weight * smoothing / V
    label_slope = ce_weight * (1.0 - smoothing)
    if not TEMPERED:
        rest_scale += ce_scale
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=EMPTY)
        logits = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        z = tl.where(raw == EMPTY, EMPTY, logits) - rest_shift
        grad = rest_scale * tl.exp(z * inv_t)
        if TEMPERED:
            grad += ce_scale * tl.exp(z)
        if SMOOTH:
            grad -= even_slope
        grad -= tl.where(v == label, label_slope, 0.0)
        grad = to_product(grad, logits, scale, softcap, SCALED, CAPPED)
        tl.debug_barrier()
        tl.store(grad_ptr + v, grad, mask=v < width)
    tl.debug_barrier()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        valid = ids >= 0
        z = tl.load(aside_ptr + k, mask=valid, other=0.0)
        log_q = z * inv_t - norm
        log_p = tl.load(logp_ptr + k, mask=valid, other=0.0) - teacher_lse
        _, pulls = entry_terms(log_p, log_q, mix, keep, weight, SUPPORT, DIVERGENCE)
        grad = kd_weight * (pulls - tl.exp(log_q) * pull) + ce_weight * tl.exp(z - lse1)
        if SMOOTH:
            grad -= even_slope
        grad -= tl.where(ids == label, label_slope, 0.0)
        grad = to_product(grad, z, scale, softcap, SCALED, CAPPED)
        tl.store(grad_ptr + ids, grad, mask=valid)
