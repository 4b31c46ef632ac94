"""The row math for a dense teacher as one Triton kernel: a program a row, three sweeps.

    first    running log-sum-exp of both sides, the student's entropy, both argmaxes
    second   the divergence and the sum of its pulls (divergences.py)
    third    write the gradient, in place

adaptive_kl needs one sweep more, before the second, for its row's weight. All arithmetic is fp32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_kernels.bins_triton import (
    BLOCK_V,
    CODES,
    LAUNCH,
    add_block,
    bin_terms,
    finite,
)
from distill_kernels.divergences import head_threshold, resolve
from distill_kernels.rows_torch import RowValues
from distill_kernels.spec import DistillSpec


def rows_triton_dense(
    logits_CV: Tensor,
    grad_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    spec: DistillSpec,
    scale_C: Tensor | None,
) -> RowValues:
    """As rows_triton, for the teacher's logits over the whole vocabulary."""
    num_rows, vocab_size = logits_CV.shape
    out_5C = torch.empty(5, num_rows, device=logits_CV.device)
    name, mix = resolve(spec)
    none = out_5C
    head_C = none
    if name == "adaptive_kl":
        p = (teacher_CV / spec.temperature).softmax(-1)
        head_C = teacher_CV.masked_fill(p < head_threshold(p, spec.akl_mu), torch.inf).amin(-1)
    _dense_rows_kernel[(num_rows,)](
        logits_CV,
        logits_CV.stride(0),
        grad_CV,
        grad_CV.stride(0),
        teacher_CV,
        teacher_CV.stride(0),
        head_C,
        labels_C.contiguous(),
        none if scale_C is None else scale_C.contiguous(),
        out_5C,
        num_rows,
        vocab_size,
        spec.temperature,
        spec.alpha,
        mix,
        1.0 - mix,
        spec.label_smoothing,
        DIVERGENCE=CODES[name],
        TEMPERED=spec.temperature != 1.0,
        SMOOTH=spec.label_smoothing > 0,
        WITH_GRAD=scale_C is not None,
        BLOCK_V=BLOCK_V,
        **LAUNCH,
    )
    return RowValues(*out_5C.unbind())


@triton.jit
def _dense_rows_kernel(
    z_ptr,  # [C, V] fp32, the student's logits, overwritten
    z_stride,
    grad_ptr,  # [C, V], in the memory of z
    grad_stride,
    t_ptr,  # [C, V] fp32, the teacher's; -inf where it has no such id
    t_stride,
    head_ptr,  # [C] fp32, lowest teacher logit of the head, read for adaptive_kl
    label_ptr,  # [C] int64
    scale_ptr,  # [C] fp32, read when WITH_GRAD
    out_ptr,  # [5, C] fp32: loss, kd, ce, top1, the student's entropy
    num_rows,
    V,
    temperature,
    alpha,
    mix,
    keep,
    smoothing,
    DIVERGENCE: tl.constexpr,
    TEMPERED: tl.constexpr,
    SMOOTH: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    grad_ptr += row * grad_stride
    t_ptr += row * t_stride
    inv_t = 1.0 / temperature
    neg_inf = -float("inf")
    label = tl.load(label_ptr + row)
    labelled = label >= 0
    label = tl.maximum(label, 0)
    label_logit = tl.load(z_ptr + label)

    z_max = neg_inf
    z_sum = 0.0
    z_sum_s = 0.0
    z_sum1 = 0.0
    z_top = tl.full((), -1, tl.int64)
    t_max = neg_inf
    t_sum = 0.0
    t_sum_s = 0.0
    t_sum1 = 0.0
    t_top = tl.full((), -1, tl.int64)
    total_logit = 0.0
    for v0 in range(0, V, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        z = tl.load(z_ptr + v, mask=v < V, other=neg_inf)
        t = tl.load(t_ptr + v, mask=v < V, other=neg_inf)
        z_top = tl.where(tl.max(z, 0) > z_max, v0 + tl.argmax(z, 0), z_top)
        t_top = tl.where(tl.max(t, 0) > t_max, v0 + tl.argmax(t, 0), t_top)
        if SMOOTH:
            total_logit += tl.sum(tl.where(v < V, z, 0.0), 0)
        z_max, z_sum, z_sum_s, z_sum1 = add_block(z, z_max, z_sum, z_sum_s, z_sum1, inv_t, TEMPERED)
        t_max, t_sum, t_sum_s, t_sum1 = add_block(t, t_max, t_sum, t_sum_s, t_sum1, inv_t, False)
    lse = z_max * inv_t + tl.log(z_sum)
    lse_t = finite(t_max) * inv_t + tl.log(t_sum)
    lse1 = lse
    if TEMPERED:
        lse1 = z_max + tl.log(z_sum1)

    weight = 0.5
    if DIVERGENCE == 6:
        head_logit = tl.load(head_ptr + row)
        gap = 0.0
        gap_head = 0.0
        for v0 in range(0, V, BLOCK_V):
            v = v0 + tl.arange(0, BLOCK_V)
            q = tl.exp(tl.load(z_ptr + v, mask=v < V, other=neg_inf) * inv_t - lse)
            t = tl.load(t_ptr + v, mask=v < V, other=neg_inf)
            here = tl.abs(tl.exp(t * inv_t - lse_t) - q)
            gap += tl.sum(here, 0)
            gap_head += tl.sum(tl.where(t >= head_logit, here, 0.0), 0)
        weight = tl.where(gap > 0, gap_head / gap, 0.5)
    kd = 0.0
    pull = 0.0
    for v0 in range(0, V, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        log_q = tl.load(z_ptr + v, mask=v < V, other=0.0) * inv_t - lse
        log_p = tl.load(t_ptr + v, mask=v < V, other=0.0) * inv_t - lse_t
        values, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        kd += tl.sum(tl.where(v < V, values, 0.0), 0)
        pull += tl.sum(tl.where(v < V, pulls, 0.0), 0)

    kd = tl.where(labelled, kd, 0.0)
    nll = tl.where(labelled, lse1 - label_logit, 0.0)
    ce = nll
    if SMOOTH:
        even = tl.where(labelled, lse1 - total_logit / V, 0.0)
        ce = (1.0 - smoothing) * nll + smoothing * even
    kd_weight = tl.where(labelled, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, 1.0 - alpha, 0.0)
    tl.store(out_ptr + row, ce_weight * ce + kd_weight * temperature * kd)
    tl.store(out_ptr + num_rows + row, kd)
    tl.store(out_ptr + 2 * num_rows + row, nll)
    tl.store(out_ptr + 3 * num_rows + row, tl.where(labelled & (z_top == t_top), 1.0, 0.0))
    entropy = lse - z_max * inv_t - z_sum_s / z_sum
    tl.store(out_ptr + 4 * num_rows + row, tl.where(labelled, entropy, 0.0))
    if not WITH_GRAD:
        return

    # A block is written at or below where it was read, so all of it must be read before.
    scale = tl.load(scale_ptr + row)
    kd_weight *= scale
    ce_weight *= scale
    for v0 in range(0, V, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        z = tl.load(z_ptr + v, mask=v < V, other=0.0)
        log_q = z * inv_t - lse
        log_p = tl.load(t_ptr + v, mask=v < V, other=0.0) * inv_t - lse_t
        _, pulls = bin_terms(log_p, log_q, mix, keep, weight, DIVERGENCE)
        grad = kd_weight * (pulls - tl.exp(log_q) * pull) + ce_weight * tl.exp(z - lse1)
        if SMOOTH:
            grad -= ce_weight * smoothing / V
        grad -= tl.where(v == label, ce_weight * (1.0 - smoothing), 0.0)
        tl.debug_barrier()
        tl.store(grad_ptr + v, grad, mask=v < V)
