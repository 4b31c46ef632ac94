"""The row math of `rows_torch` as one Triton kernel: a program a row, two sweeps of the vocabulary.

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

from distill_kernels.bins_triton import (
    BLOCK_V,
    CODES,
    LOW,
    add_to_lanes,
    bin_terms,
    finite,
    head_logits,
    launch_options,
    logaddexp,
    over_lanes,
    to_product,
)
from distill_kernels.divergences import head_threshold, resolve
from distill_kernels.reference import teacher_top1
from distill_kernels.rows_torch import RowValues
from distill_kernels.spec import DistillSpec
from distill_kernels.teacher import SparseTeacher
from distill_kernels.transform import LogitTransform

SUPPORT_CODES = {"tail_bucket": 0, "renormalize": 1, "sampled": 2}
BLOCKS_K = (64, 256)


def rows_triton(
    logits_CV: Tensor,
    grad_CV: Tensor,
    teacher: SparseTeacher,
    labels_C: Tensor,
    spec: DistillSpec,
    scale_C: Tensor | None,
    transform: LogitTransform,
    bias_V: Tensor | None,
) -> RowValues:
    """Writes scale times d loss / d product into grad_CV where a scale is given.

    logits_CV  fp32, the head's products, of `sweep.buffer`; destroyed, its padding too
    grad_CV    logits_CV or its `narrow_view`: half as many bytes to write, and no copy to make for
               the products that follow
    bias_V     fp32, as wide as the buffer
    """
    num_rows, vocab_size = logits_CV.shape
    num_entries = teacher.ids.shape[1]
    none = torch.zeros(1, device=logits_CV.device)
    out_5C = torch.empty(5, num_rows, device=logits_CV.device)
    aside_CK = torch.empty(num_rows, num_entries, device=logits_CV.device)
    name, mix = resolve(spec)
    _rows_kernel[(num_rows,)](
        logits_CV,
        logits_CV.stride(0),
        grad_CV,
        grad_CV.stride(0),
        none if bias_V is None else bias_V,
        teacher.ids.contiguous(),
        teacher.logprobs.float().contiguous(),
        none if teacher.tail_logprob is None else teacher.tail_logprob.float().contiguous(),
        none if teacher.entropy is None else teacher.entropy.float().contiguous(),
        _head_logprob(teacher, spec) if name == "adaptive_kl" else none,
        labels_C.contiguous(),
        teacher_top1(teacher),
        aside_CK,
        none if scale_C is None else scale_C.contiguous(),
        out_5C,
        num_rows,
        vocab_size,
        logits_CV.stride(0),
        num_entries,
        float(spec.temperature),
        float(spec.alpha),
        float(mix),
        1.0 - mix,
        float(spec.label_smoothing),
        float(transform.scale),
        float(transform.softcap or 0.0),
        DIVERGENCE=CODES[name],
        SUPPORT=SUPPORT_CODES[spec.support],
        TEMPERED=spec.temperature != 1.0,
        SMOOTH=spec.label_smoothing > 0,
        HAS_ENTROPY=teacher.entropy is not None,
        HAS_BIAS=bias_V is not None,
        SCALED=transform.scale != 1.0,
        CAPPED=transform.softcap is not None,
        WITH_GRAD=scale_C is not None,
        BLOCK_V=BLOCK_V,
        BLOCK_K=BLOCKS_K[num_entries > BLOCKS_K[0]],
        **launch_options(),
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
def _rows_kernel(
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

    label = tl.load(label_ptr + row)
    labelled = label >= 0
    label = tl.maximum(label, 0)
    label_logit = head_logits(
        tl.load(z_ptr + label), bias_ptr, label, width, scale, softcap, HAS_BIAS, SCALED, CAPPED
    )

    # Entries: set aside, and the log-sum-exp of both sides over them.
    num_entries = 0
    head_max = neg_inf
    head_id = tl.full((), -1, tl.int64)
    teacher_max = neg_inf
    total_logit = 0.0
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
            total_logit += tl.sum(tl.where(valid, z, 0.0), 0)
    tl.debug_barrier()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        tl.store(z_ptr + ids, tl.full((BLOCK_K,), LOW, tl.float32), mask=ids >= 0)
    tl.debug_barrier()
    taught = labelled & (num_entries > 0)
    has_rest = num_entries < V
    head_shift = finite(head_max)
    teacher_shift = finite(teacher_max)
    head_sum = 0.0
    head_sum1 = 0.0
    teacher_sum = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        z = tl.load(aside_ptr + k, mask=k < K, other=neg_inf) - head_shift
        head_sum += tl.sum(tl.exp(z * inv_t), 0)
        head_sum1 += tl.sum(tl.exp(z), 0)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        logp = tl.load(logp_ptr + k, mask=valid, other=neg_inf)
        teacher_sum += tl.sum(tl.exp(logp - teacher_shift), 0)
    lse_head = head_shift * inv_t + tl.log(head_sum)
    lse_head1 = head_shift + tl.log(head_sum1)

    # Vocabulary: running sums of the rest.
    lane_top = tl.full((BLOCK_V,), LOW, tl.float32)
    lane_at = tl.zeros((BLOCK_V,), tl.int32)
    lane_t = tl.zeros((BLOCK_V,), tl.float32)
    lane_ts = tl.zeros((BLOCK_V,), tl.float32)
    lane_1 = tl.zeros((BLOCK_V,), tl.float32)
    lane_total = tl.zeros((BLOCK_V,), tl.float32)
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=LOW)
        gone = (raw == LOW) | (v >= V)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        if SMOOTH:
            lane_total += tl.where(gone, 0.0, z)
        z = tl.where(gone | (z < LOW), LOW, z)
        lane_top, lane_at, lane_t, lane_ts, lane_1 = add_to_lanes(
            z, v, lane_top, lane_at, lane_t, lane_ts, lane_1, inv_t, TEMPERED
        )
    rest_max, rest_id, rest_sum, rest_sum_s, rest_sum1 = over_lanes(
        lane_top, lane_at, lane_t, lane_ts, lane_1, inv_t, TEMPERED
    )
    if SMOOTH:
        total_logit += tl.sum(lane_total, 0)
    rest_shift = tl.where(rest_max > LOW, rest_max, 0.0)
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
    if SUPPORT == 1:
        teacher_lse = teacher_shift + tl.log(teacher_sum)
        norm = lse_head
    log_pt = 0.0
    log_qt = 0.0
    if SUPPORT == 0:
        log_pt = tl.where(has_rest, tl.load(tail_ptr + row), 0.0)
        log_qt = tl.where(has_rest, lse_rest - lse, 0.0)
    weight = 0.5
    if DIVERGENCE == 6:
        head_logp = tl.load(head_ptr + row)
        gap = 0.0
        gap_head = 0.0
        if SUPPORT == 0:
            gap = tl.where(has_rest, tl.abs(tl.exp(log_pt) - tl.exp(log_qt)), 0.0)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
            logp = tl.load(logp_ptr + k, mask=valid, other=neg_inf)
            log_q = tl.load(aside_ptr + k, mask=valid, other=neg_inf) * inv_t - norm
            here = tl.abs(tl.exp(logp - teacher_lse) - tl.exp(log_q))
            here = tl.where(valid, here, 0.0)
            gap += tl.sum(here, 0)
            gap_head += tl.sum(tl.where(logp >= head_logp, here, 0.0), 0)
        weight = tl.where(gap > 0, gap_head / gap, 0.5)
    kd = 0.0
    pull = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        s = tl.load(aside_ptr + k, mask=valid, other=0.0) * inv_t
        log_q = s - norm
        log_p = tl.load(logp_ptr + k, mask=valid, other=0.0) - teacher_lse
        if SUPPORT == 2:
            p = tl.exp(log_p)
            values = -p * tl.where(log_q < LOW, LOW, log_q)
            pulls = -p
        else:
            values, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        kd += tl.sum(tl.where(valid, values, 0.0), 0)
        pull += tl.sum(tl.where(valid, pulls, 0.0), 0)
        entropy += tl.sum(tl.where(valid & (s != neg_inf), tl.exp(s - lse) * (lse - s), 0.0), 0)
    rest_scale = 0.0
    if SUPPORT == 0:
        value, tail_pull = bin_terms(log_pt, log_qt, mix, keep, weight, DIVERGENCE)
        kd += tl.where(has_rest, value, 0.0)
        pull += tl.where(has_rest, tail_pull, 0.0)
        slope = tail_pull - tl.exp(log_qt) * pull
        rest_scale = tl.where(has_rest & (rest_sum > 0), slope / rest_sum, 0.0)
    if SUPPORT == 2:
        rest_scale = -pull * rest_q
    if HAS_ENTROPY:
        kd -= tl.load(entropy_ptr + row)

    kd = tl.where(taught, kd, 0.0)
    nll = tl.where(labelled, lse1 - label_logit, 0.0)
    ce = nll
    if SMOOTH:
        even = tl.where(labelled, lse1 - total_logit / V, 0.0)
        ce = (1.0 - smoothing) * nll + smoothing * even
    kd_weight = tl.where(taught, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, tl.where(taught, 1.0 - alpha, 1.0), 0.0)
    # A part that counts for nothing adds nothing, even where it is infinite.
    loss = tl.where(ce_weight > 0, ce_weight * ce, 0.0)
    loss += tl.where(kd_weight > 0, kd_weight * temperature * kd, 0.0)
    student_top = tl.where(head_max >= rest_max, head_id, rest_id)
    agree = taught & (student_top == tl.load(top_ptr + row))
    tl.store(out_ptr + row, loss)
    tl.store(out_ptr + num_rows + row, kd)
    tl.store(out_ptr + 2 * num_rows + row, nll)
    tl.store(out_ptr + 3 * num_rows + row, tl.where(agree, 1.0, 0.0))
    tl.store(out_ptr + 4 * num_rows + row, tl.where(labelled, entropy, 0.0))
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
        raw = tl.load(z_ptr + v, mask=v < width, other=LOW)
        logits = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        z = tl.where(raw == LOW, LOW, logits) - rest_shift
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
        if SUPPORT == 2:
            pulls = -tl.exp(log_p)
        else:
            _, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        grad = kd_weight * (pulls - tl.exp(log_q) * pull) + ce_weight * tl.exp(z - lse1)
        if SMOOTH:
            grad -= even_slope
        grad -= tl.where(ids == label, label_slope, 0.0)
        grad = to_product(grad, z, scale, softcap, SCALED, CAPPED)
        tl.store(grad_ptr + ids, grad, mask=valid)
