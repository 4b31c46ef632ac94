"""A dense teacher's rows: three sweeps of the vocabulary.

    first    running log-sum-exp of both sides, the student's entropy, both argmaxes
    second   the divergence and the sum of its pulls (divergences.py)
    third    write the gradient, in place

adaptive_kl needs one sweep more, before the second, for its row's weight. What is read of the
student is the head's products, as in sparse.py. Every lane has its own running sums, and lanes
meet at the end of a sweep. All arithmetic is fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_kernels.backends.triton_rows.bins import bin_terms
from distill_kernels.backends.triton_rows.lanes import add_to_lanes, empty_lanes, over_lanes
from distill_kernels.backends.triton_rows.launch import absent, arguments
from distill_kernels.backends.triton_rows.names import ADAPTIVE_KL, EMPTY
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

RANKED_BYTES = 64 << 20
"""Of teacher logits that adaptive_kl ranks at once; ranking holds RANKING times as much."""
RANKING = 7


def dense_rows(chunk: Chunk, teacher_CV: Tensor, grad_CV: Tensor) -> RowValues:
    """As sparse.sparse_rows, for the teacher's logits over the whole vocabulary."""
    spec = chunk.spec
    num_rows = teacher_CV.shape[0]
    none = absent(chunk)
    out_5C = torch.empty(5, num_rows, device=none.device)
    _dense_kernel[(num_rows,)](
        **arguments(chunk, grad_CV, out_5C),
        t_ptr=teacher_CV,
        t_stride=teacher_CV.stride(0),
        head_ptr=_head_logit(teacher_CV, spec) if spec.divergence == "adaptive_kl" else none,
    )
    return RowValues(*out_5C.unbind())


def _head_logit(teacher_CV: Tensor, spec: DistillSpec) -> Tensor:
    """The lowest of the teacher's logits that belong to its head, fp32 [C]."""
    found = []
    for logits in teacher_CV.split(max(1, RANKED_BYTES // (4 * teacher_CV.shape[1]))):
        p = (logits / spec.temperature).softmax(-1)
        outside = p < head_threshold(p, spec.akl_mu)
        found.append(logits.masked_fill(outside, torch.inf).amin(-1))
    return torch.cat(found)


@triton.jit(
    do_not_specialize=["num_rows"],
    do_not_specialize_on_alignment=["head_ptr", "label_ptr", "scale_ptr", "out_ptr"],
)
def _dense_kernel(
    z_ptr,  # [C, width] fp32, the student's products, overwritten
    z_stride,
    grad_ptr,  # [C, width], in the memory of z
    grad_stride,
    bias_ptr,  # [width] fp32, read when HAS_BIAS
    t_ptr,  # [C, width] fp32, the teacher's logits; -inf where it has no such id
    t_stride,
    head_ptr,  # [C] fp32, lowest teacher logit of the head, read for adaptive_kl
    label_ptr,  # [C] int64
    scale_ptr,  # [C] fp32, read when WITH_GRAD
    out_ptr,  # [5, C] fp32: loss, kd, ce, top1, the student's entropy
    num_rows,
    V,
    width,
    temperature,
    alpha,
    mix,
    keep,
    smoothing,
    scale,
    softcap,
    DIVERGENCE: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCALED: tl.constexpr,
    CAPPED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    grad_ptr += row * grad_stride
    t_ptr += row * t_stride
    inv_t = 1.0 / temperature
    label, labelled, label_logit = read_label(
        label_ptr, row, z_ptr, bias_ptr, width, scale, softcap, HAS_BIAS, SCALED, CAPPED
    )

    z_top, z_at, z_sum, z_sum_s, z_sum1 = empty_lanes(BLOCK_V)
    t_top, t_at, t_sum, t_sum_s, t_sum1 = empty_lanes(BLOCK_V)
    total = tl.zeros((BLOCK_V,), tl.float32)
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=EMPTY)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        t = tl.load(t_ptr + v, mask=v < width, other=EMPTY)
        if SMOOTH:
            total += tl.where(v < V, z, 0.0)
        z = tl.where((v >= V) | (z < EMPTY), EMPTY, z)
        t = tl.where((v >= V) | (t < EMPTY), EMPTY, t)
        z_top, z_at, z_sum, z_sum_s, z_sum1 = add_to_lanes(
            z, v, z_top, z_at, z_sum, z_sum_s, z_sum1, inv_t, TEMPERED
        )
        t_top, t_at, t_sum, t_sum_s, t_sum1 = add_to_lanes(
            t, v, t_top, t_at, t_sum, t_sum_s, t_sum1, inv_t, False
        )
    z_max, z_id, all_z, all_zs, all_z1 = over_lanes(
        z_top, z_at, z_sum, z_sum_s, z_sum1, inv_t, TEMPERED
    )
    t_max, t_id, all_t, _all_ts, _all_t1 = over_lanes(
        t_top, t_at, t_sum, t_sum_s, t_sum1, inv_t, False
    )
    lse = z_max * inv_t + tl.log(all_z)
    lse_t = t_max * inv_t + tl.log(all_t)
    lse1 = lse
    if TEMPERED:
        lse1 = z_max + tl.log(all_z1)

    weight = 0.5
    if DIVERGENCE == ADAPTIVE_KL:
        head_logit = tl.load(head_ptr + row)
        gap = tl.zeros((BLOCK_V,), tl.float32)
        gap_head = tl.zeros((BLOCK_V,), tl.float32)
        for v0 in range(0, width, BLOCK_V):
            v = v0 + tl.arange(0, BLOCK_V)
            raw = tl.load(z_ptr + v, mask=v < width, other=EMPTY)
            z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
            t = tl.load(t_ptr + v, mask=v < width, other=EMPTY)
            here = tl.abs(tl.exp(t * inv_t - lse_t) - tl.exp(z * inv_t - lse))
            here = tl.where(v < V, here, 0.0)
            gap += here
            gap_head += tl.where(t >= head_logit, here, 0.0)
        all_gap = tl.sum(gap, 0)
        weight = tl.where(all_gap > 0, tl.sum(gap_head, 0) / all_gap, 0.5)
    lane_kd = tl.zeros((BLOCK_V,), tl.float32)
    lane_pull = tl.zeros((BLOCK_V,), tl.float32)
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=0.0)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        log_q = z * inv_t - lse
        log_p = tl.load(t_ptr + v, mask=v < width, other=0.0) * inv_t - lse_t
        values, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        lane_kd += tl.where(v < V, values, 0.0)
        lane_pull += tl.where(v < V, pulls, 0.0)
    pull = tl.sum(lane_pull, 0)

    kd = tl.where(labelled, tl.sum(lane_kd, 0), 0.0)
    total_logit = tl.sum(total, 0)
    nll, ce = cross_entropy(lse1, label_logit, total_logit, V, labelled, smoothing, SMOOTH)
    kd_weight = tl.where(labelled, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, 1.0 - alpha, 0.0)
    entropy = lse - z_max * inv_t - all_zs / all_z
    store_values(
        out_ptr,
        num_rows,
        row,
        kd,
        nll,
        ce,
        labelled & (z_id == t_id),
        entropy,
        labelled,
        kd_weight,
        ce_weight,
        temperature,
    )
    if not WITH_GRAD:
        return

    # A block is written at or below where it was read, so all of it must be read before.
    row_scale = tl.load(scale_ptr + row)
    kd_weight *= row_scale
    ce_weight *= row_scale
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=0.0)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        log_q = z * inv_t - lse
        log_p = tl.load(t_ptr + v, mask=v < width, other=0.0) * inv_t - lse_t
        _, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        grad = kd_weight * (pulls - tl.exp(log_q) * pull) + ce_weight * tl.exp(z - lse1)
        if SMOOTH:
            grad -= ce_weight * smoothing / V
        grad -= tl.where(v == label, ce_weight * (1.0 - smoothing), 0.0)
        grad = to_product(grad, z, scale, softcap, SCALED, CAPPED)
        tl.debug_barrier()
        tl.store(grad_ptr + v, grad, mask=v < width)
