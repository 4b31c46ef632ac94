"""The row math for a dense teacher as one Triton kernel: a program a row, three sweeps.

    first    running log-sum-exp of both sides, the student's entropy, both argmaxes
    second   the divergence and the sum of its pulls (divergences.py)
    third    write the gradient, in place

adaptive_kl needs one sweep more, before the second, for its row's weight. What is read of the
student is the head's products, as in rows_triton. Every lane has its own running sums, and lanes
meet at the end of a sweep. All arithmetic is fp32.
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
    head_logits,
    launch_options,
    over_lanes,
    to_product,
)
from distill_kernels.divergences import head_threshold, resolve
from distill_kernels.rows_torch import RowValues
from distill_kernels.spec import DistillSpec
from distill_kernels.transform import LogitTransform

RANKED_BYTES = 64 << 20
"""Of teacher logits that adaptive_kl ranks at once; ranking holds RANKING times as much."""
RANKING = 7


def rows_triton_dense(
    logits_CV: Tensor,
    grad_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    spec: DistillSpec,
    scale_C: Tensor | None,
    transform: LogitTransform,
    bias_V: Tensor | None,
) -> RowValues:
    """As rows_triton, for the teacher's logits over the whole vocabulary, of another `buffer`."""
    num_rows, vocab_size = logits_CV.shape
    none = torch.zeros(1, device=logits_CV.device)
    out_5C = torch.empty(5, num_rows, device=logits_CV.device)
    name, mix = resolve(spec)
    _dense_rows_kernel[(num_rows,)](
        logits_CV,
        logits_CV.stride(0),
        grad_CV,
        grad_CV.stride(0),
        none if bias_V is None else bias_V,
        teacher_CV,
        teacher_CV.stride(0),
        _head_logit(teacher_CV, spec) if name == "adaptive_kl" else none,
        labels_C.contiguous(),
        none if scale_C is None else scale_C.contiguous(),
        out_5C,
        num_rows,
        vocab_size,
        logits_CV.stride(0),
        float(spec.temperature),
        float(spec.alpha),
        float(mix),
        1.0 - mix,
        float(spec.label_smoothing),
        float(transform.scale),
        float(transform.softcap or 0.0),
        DIVERGENCE=CODES[name],
        TEMPERED=spec.temperature != 1.0,
        SMOOTH=spec.label_smoothing > 0,
        HAS_BIAS=bias_V is not None,
        SCALED=transform.scale != 1.0,
        CAPPED=transform.softcap is not None,
        WITH_GRAD=scale_C is not None,
        BLOCK_V=BLOCK_V,
        **launch_options(),
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
def _dense_rows_kernel(
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
    label = tl.load(label_ptr + row)
    labelled = label >= 0
    label = tl.maximum(label, 0)
    label_logit = head_logits(
        tl.load(z_ptr + label), bias_ptr, label, width, scale, softcap, HAS_BIAS, SCALED, CAPPED
    )

    z_top = tl.full((BLOCK_V,), LOW, tl.float32)
    z_at = tl.zeros((BLOCK_V,), tl.int32)
    z_sum = tl.zeros((BLOCK_V,), tl.float32)
    z_sum_s = tl.zeros((BLOCK_V,), tl.float32)
    z_sum1 = tl.zeros((BLOCK_V,), tl.float32)
    t_top = tl.full((BLOCK_V,), LOW, tl.float32)
    t_at = tl.zeros((BLOCK_V,), tl.int32)
    t_sum = tl.zeros((BLOCK_V,), tl.float32)
    t_sum_s = tl.zeros((BLOCK_V,), tl.float32)
    t_sum1 = tl.zeros((BLOCK_V,), tl.float32)
    total = tl.zeros((BLOCK_V,), tl.float32)
    for v0 in range(0, width, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        raw = tl.load(z_ptr + v, mask=v < width, other=LOW)
        z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
        t = tl.load(t_ptr + v, mask=v < width, other=LOW)
        if SMOOTH:
            total += tl.where(v < V, z, 0.0)
        z = tl.where((v >= V) | (z < LOW), LOW, z)
        t = tl.where((v >= V) | (t < LOW), LOW, t)
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
    if DIVERGENCE == 6:
        head_logit = tl.load(head_ptr + row)
        gap = tl.zeros((BLOCK_V,), tl.float32)
        gap_head = tl.zeros((BLOCK_V,), tl.float32)
        for v0 in range(0, width, BLOCK_V):
            v = v0 + tl.arange(0, BLOCK_V)
            raw = tl.load(z_ptr + v, mask=v < width, other=LOW)
            z = head_logits(raw, bias_ptr, v, width, scale, softcap, HAS_BIAS, SCALED, CAPPED)
            t = tl.load(t_ptr + v, mask=v < width, other=LOW)
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
    nll = tl.where(labelled, lse1 - label_logit, 0.0)
    ce = nll
    if SMOOTH:
        even = tl.where(labelled, lse1 - tl.sum(total, 0) / V, 0.0)
        ce = (1.0 - smoothing) * nll + smoothing * even
    kd_weight = tl.where(labelled, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, 1.0 - alpha, 0.0)
    # A part that counts for nothing adds nothing, even where it is infinite.
    loss = tl.where(ce_weight > 0, ce_weight * ce, 0.0)
    loss += tl.where(kd_weight > 0, kd_weight * temperature * kd, 0.0)
    tl.store(out_ptr + row, loss)
    tl.store(out_ptr + num_rows + row, kd)
    tl.store(out_ptr + 2 * num_rows + row, nll)
    tl.store(out_ptr + 3 * num_rows + row, tl.where(labelled & (z_id == t_id), 1.0, 0.0))
    entropy = lse - z_max * inv_t - all_zs / all_z
    tl.store(out_ptr + 4 * num_rows + row, tl.where(labelled, entropy, 0.0))
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
