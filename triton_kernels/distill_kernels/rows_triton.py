"""The row math of `rows_torch` as one Triton kernel: a program a row, two sweeps of the vocabulary.

    sweep over the entries    keep their logits aside, put -inf in their place
    sweep over the vocabulary online log-sum-exp and argmax of what is left: the rest
    sweep over the entries    divergence and its row scalars
    sweep over the vocabulary write the gradient off the entries, in place
    sweep over the entries    write theirs

Barriers stand between sweeps that touch the same addresses. All arithmetic is fp32.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from distill_kernels.reference import teacher_top1
from distill_kernels.rows_torch import RowSums
from distill_kernels.spec import DistillSpec
from distill_kernels.teacher import SparseTeacher

SUPPORT_CODES = {"tail_bucket": 0, "renormalize": 1, "sampled": 2}
BLOCK_V = 4096
MAX_BLOCK_K = 256
NUM_WARPS = 8


def check_device(device: torch.device) -> None:
    """Raises ValueError where Triton cannot run: it needs CUDA, or its interpreter."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend='triton' on {device.type}: it needs a CUDA device, or the interpreter "
            "(TRITON_INTERPRET=1 before triton is imported). Use backend='torch' here."
        )


def rows_triton(
    logits_CV: Tensor,
    teacher: SparseTeacher,
    labels_C: Tensor,
    spec: DistillSpec,
    with_grad: bool,
) -> RowSums:
    """fp32 logits_CV is overwritten: by d loss / d logits (sum reduction) when `with_grad`."""
    num_rows, vocab_size = logits_CV.shape
    num_entries = teacher.ids.shape[1]
    none = torch.zeros(1, device=logits_CV.device)
    out_4C = torch.empty(4, num_rows, device=logits_CV.device)
    aside_CK = torch.empty(num_rows, num_entries, device=logits_CV.device)
    _rows_kernel[(num_rows,)](
        logits_CV,
        logits_CV.stride(0),
        teacher.ids.contiguous(),
        teacher.logprobs.float().contiguous(),
        none if teacher.tail_logprob is None else teacher.tail_logprob.float().contiguous(),
        none if teacher.entropy is None else teacher.entropy.float().contiguous(),
        labels_C.contiguous(),
        teacher_top1(teacher),
        aside_CK,
        out_4C,
        num_rows,
        vocab_size,
        num_entries,
        spec.temperature,
        spec.alpha,
        SUPPORT=SUPPORT_CODES[spec.support],
        TEMPERED=spec.temperature != 1.0,
        HAS_ENTROPY=teacher.entropy is not None,
        WITH_GRAD=with_grad,
        BLOCK_V=BLOCK_V,
        BLOCK_K=min(MAX_BLOCK_K, triton.next_power_of_2(num_entries)),
        num_warps=NUM_WARPS,
    )
    return RowSums(*out_4C.unbind())


@triton.jit
def _finite(x):
    """0 for -inf: a shift that keeps exp(-inf - shift) at 0 instead of NaN."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def _logaddexp(a, b):
    top = _finite(tl.maximum(a, b))
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@triton.jit
def _rows_kernel(
    z_ptr,  # [C, V] fp32, overwritten
    z_stride,
    ids_ptr,  # [C, K] int64, -1 = no entry
    logp_ptr,  # [C, K] fp32
    tail_ptr,  # [C] fp32, read for tail_bucket
    entropy_ptr,  # [C] fp32, read when HAS_ENTROPY
    label_ptr,  # [C] int64
    top_ptr,  # [C] int64, the teacher's likeliest token
    aside_ptr,  # [C, K] fp32 scratch
    out_ptr,  # [4, C] fp32: loss, kd, ce, top1
    num_rows,
    V,
    K,
    temperature,
    alpha,
    SUPPORT: tl.constexpr,
    TEMPERED: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    ids_ptr += row * K
    logp_ptr += row * K
    aside_ptr += row * K
    inv_t = 1.0 / temperature
    neg_inf = -float("inf")

    label = tl.load(label_ptr + row)
    labelled = label >= 0
    label = tl.maximum(label, 0)
    label_logit = tl.load(z_ptr + label)

    # Entries: set aside, and the log-sum-exp of both sides over them.
    head_max = neg_inf
    head_id = tl.full((), -1, tl.int64)
    teacher_max = neg_inf
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        valid = ids >= 0
        z = tl.load(z_ptr + ids, mask=valid, other=neg_inf)
        tl.store(aside_ptr + k, z, mask=k < K)
        best = tl.max(z, 0)
        at = tl.argmax(z, 0)
        best_id = tl.sum(tl.where(tl.arange(0, BLOCK_K) == at, ids, 0), 0)
        head_id = tl.where(best > head_max, best_id, head_id)
        head_max = tl.maximum(head_max, best)
        logp = tl.load(logp_ptr + k, mask=k < K, other=neg_inf)
        teacher_max = tl.maximum(teacher_max, tl.max(tl.where(valid, logp, neg_inf), 0))
    tl.debug_barrier()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        tl.store(z_ptr + ids, tl.full((BLOCK_K,), neg_inf, tl.float32), mask=ids >= 0)
    tl.debug_barrier()
    taught = labelled & (head_id >= 0)
    head_shift = _finite(head_max)
    teacher_shift = _finite(teacher_max)
    head_sum = 0.0
    head_sum1 = 0.0
    teacher_sum = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        z = tl.load(aside_ptr + k, mask=k < K, other=neg_inf) - head_shift
        head_sum += tl.sum(tl.exp(z * inv_t), 0)
        head_sum1 += tl.sum(tl.exp(z), 0)
        logp = tl.load(logp_ptr + k, mask=k < K, other=neg_inf)
        teacher_sum += tl.sum(tl.exp(logp - teacher_shift), 0)
    lse_head = head_shift * inv_t + tl.log(head_sum)
    lse_head1 = head_shift + tl.log(head_sum1)

    # Vocabulary: online log-sum-exp of the rest, at T and at 1.
    rest_max = neg_inf
    rest_id = tl.full((), -1, tl.int64)
    rest_sum = 0.0
    rest_sum1 = 0.0
    for v0 in range(0, V, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        z = tl.load(z_ptr + v, mask=v < V, other=neg_inf)
        best = tl.max(z, 0)
        rest_id = tl.where(best > rest_max, v0 + tl.argmax(z, 0), rest_id)
        new_max = tl.maximum(rest_max, best)
        old_shift = _finite(rest_max)
        new_shift = _finite(new_max)
        rest_sum = rest_sum * tl.exp((old_shift - new_shift) * inv_t) + tl.sum(
            tl.exp((z - new_shift) * inv_t), 0
        )
        if TEMPERED:
            rest_sum1 = rest_sum1 * tl.exp(old_shift - new_shift) + tl.sum(tl.exp(z - new_shift), 0)
        rest_max = new_max
    rest_shift = _finite(rest_max)
    lse_rest = rest_shift * inv_t + tl.log(rest_sum)
    lse = _logaddexp(lse_rest, lse_head)
    if TEMPERED:
        lse1 = _logaddexp(rest_shift + tl.log(rest_sum1), lse_head1)
    else:
        lse1 = lse

    # Entries: the divergence.
    teacher_lse = 0.0
    norm = lse
    if SUPPORT == 1:
        teacher_lse = teacher_shift + tl.log(teacher_sum)
        norm = lse_head
    kd = 0.0
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        valid = tl.load(ids_ptr + k, mask=k < K, other=-1) >= 0
        log_q = tl.load(aside_ptr + k, mask=valid, other=0.0) * inv_t - norm
        log_p = tl.load(logp_ptr + k, mask=valid, other=0.0) - teacher_lse
        p = tl.where(valid, tl.exp(log_p), 0.0)
        if SUPPORT == 2:
            kd -= tl.sum(tl.where(valid, p * log_q, 0.0), 0)
        else:
            kd += tl.sum(tl.where(valid, p * (log_p - log_q), 0.0), 0)
    rest_scale = tl.exp(rest_shift * inv_t - lse)
    if SUPPORT == 0:
        log_pt = tl.load(tail_ptr + row)
        tailed = (log_pt > neg_inf) & (rest_max > neg_inf)
        log_pt = tl.where(tailed, log_pt, 0.0)
        log_qt = tl.where(tailed, lse_rest - lse, 0.0)
        kd += tl.where(tailed, tl.exp(log_pt) * (log_pt - log_qt), 0.0)
        rest_scale -= tl.where(tailed, tl.exp(log_pt) / rest_sum, 0.0)
    if SUPPORT == 1:
        rest_scale = 0.0
    if HAS_ENTROPY:
        kd -= tl.load(entropy_ptr + row)
    kd = tl.where(taught, kd, 0.0)
    ce = tl.where(labelled, lse1 - label_logit, 0.0)
    kd_weight = tl.where(taught, alpha * temperature, 0.0)
    ce_weight = tl.where(labelled, tl.where(taught, 1.0 - alpha, 1.0), 0.0)
    student_top = tl.where(head_max >= rest_max, head_id, rest_id)
    agree = taught & (student_top == tl.load(top_ptr + row))
    tl.store(out_ptr + row, ce_weight * ce + kd_weight * temperature * kd)
    tl.store(out_ptr + num_rows + row, kd)
    tl.store(out_ptr + 2 * num_rows + row, ce)
    tl.store(out_ptr + 3 * num_rows + row, tl.where(agree, 1.0, 0.0))
    if not WITH_GRAD:
        return

    # Vocabulary: the gradient off the entries. Their own places hold -inf and become 0.
    tl.debug_barrier()
    rest_scale = kd_weight * rest_scale
    ce_scale = ce_weight * tl.exp(rest_shift - lse1)
    if not TEMPERED:
        rest_scale += ce_scale
    for v0 in range(0, V, BLOCK_V):
        v = v0 + tl.arange(0, BLOCK_V)
        z = tl.load(z_ptr + v, mask=v < V, other=neg_inf) - rest_shift
        grad = rest_scale * tl.exp(z * inv_t)
        if TEMPERED:
            grad += ce_scale * tl.exp(z)
        tl.store(z_ptr + v, grad, mask=v < V)
    tl.debug_barrier()
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        ids = tl.load(ids_ptr + k, mask=k < K, other=-1)
        valid = ids >= 0
        z = tl.load(aside_ptr + k, mask=valid, other=0.0)
        q = tl.exp(z * inv_t - norm)
        p = tl.exp(tl.load(logp_ptr + k, mask=valid, other=0.0) - teacher_lse)
        grad = kd_weight * (q - p) + ce_weight * tl.exp(z - lse1)
        tl.store(z_ptr + ids, grad, mask=valid)
    tl.debug_barrier()
    at_label = tl.load(z_ptr + label)
    tl.debug_barrier()
    tl.store(z_ptr + label, at_label - ce_weight)
