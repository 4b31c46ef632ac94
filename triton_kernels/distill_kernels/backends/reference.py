"""The backend `reference`: the loss on materialised logits, as its formula reads."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels.checks import check_shapes, check_values
from distill_kernels.divergences import EMPTY, plain_divergence
from distill_kernels.reduction import denominator, row_weights, weighted
from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.teacher import (
    DenseLogits,
    DenseTeacher,
    SparseTeacher,
    Teacher,
    head_mass,
    taught_rows,
    teacher_top1,
)


def distill_loss(
    logits: Tensor,
    teacher: Teacher,
    labels: Tensor,
    *,
    spec: DistillSpec,
    weights: Tensor | None = None,
) -> DistillOutput:
    """The loss of `spec` for logits that already exist, by plain autograd.

    logits   [N, V], any float type; computed in fp32, or in fp64 when given fp64
    labels   int64 [N]: the token that row n predicts; -100 = the row counts for nothing
    weights  [N] w >= 0, without a gradient, or None = 1 everywhere: with l_n the loss of row n,
             "mean" is sum_n w_n l_n / sum_n w_n over the rows with a label (0 where no row
             counts), "sum" is sum_n w_n l_n, "none" is w_n l_n

    Clear before fast. Raises ValueError when shapes or teacher do not fit the spec.
    """
    check_shapes(logits.shape[0], teacher, labels, spec, weights)
    check_values(logits.shape[1], teacher, labels, spec, weights)
    logits_NV = logits if logits.dtype == torch.float64 else logits.float()
    labelled = labels != IGNORE
    taught = taught_rows(teacher, labels)

    nll_N = F.cross_entropy(logits_NV, labels, reduction="none", ignore_index=IGNORE)
    ce_N = F.cross_entropy(
        logits_NV,
        labels,
        reduction="none",
        ignore_index=IGNORE,
        label_smoothing=spec.label_smoothing,
    )
    student_NV = (logits_NV / spec.temperature).log_softmax(-1)
    if isinstance(teacher, SparseTeacher):
        kd_N = sparse_divergence(student_NV, teacher, spec)
        top_N = teacher_top1(teacher)
    else:
        teacher_NV = teacher_logits(teacher, logits_NV.shape[1], logits_NV.dtype)
        top_N = teacher_NV.argmax(-1)
        kd_N = plain_divergence((teacher_NV / spec.temperature).log_softmax(-1), student_NV, spec)
    kd_N = torch.where(taught, kd_N, 0.0)

    ones = torch.ones_like(ce_N)
    kd_weight = torch.where(taught, spec.alpha * spec.temperature**2 * ones, 0.0)
    loss = weighted(ce_N, torch.where(taught, (1.0 - spec.alpha) * ones, ones))
    loss = loss + weighted(kd_N, kd_weight)
    if weights is not None:
        loss = weighted(loss, row_weights(labels, weights))
    if spec.reduction != "none":
        loss = loss.sum()
    if spec.reduction == "mean":
        loss = loss / denominator(labels, weights)

    with torch.no_grad():
        q_NV = student_NV.exp()
        entropy_N = -(q_NV * student_NV.masked_fill(q_NV == 0, 0.0)).sum(-1)
        return DistillOutput(
            loss=loss,
            kd=kd_N.detach().sum(),
            ce=nll_N.detach().sum(),
            num_tokens=labelled.sum(),
            num_teacher_tokens=taught.sum(),
            teacher_mass=(head_mass(teacher) * taught).sum(),
            top1_agreement=((logits_NV.argmax(-1) == top_N) & taught).sum(),
            entropy=(entropy_N * labelled).sum(),
        )


def sparse_divergence(student_NV: Tensor, teacher: SparseTeacher, spec: DistillSpec) -> Tensor:
    """D in nats over the bins of `spec.support`, [N]; student_NV holds logprobs at T.

    tail_bucket: bins are the entries and the rest. The student's rest is a log-sum-exp over the
    other tokens, not 1 - sum, so nothing cancels.
    renormalize: bins are the entries, both sides conditioned on them.
    sampled: -H(p) - sum_k w_k log q_k with w_k the share of draws; its expectation is the KL over
    the whole vocabulary (arXiv 2503.16870).
    Rows without entries give 0.
    """
    mask = teacher.ids >= 0
    ids = teacher.ids.clamp_min(0)
    q_NK = student_NV.gather(1, ids).masked_fill(~mask, 0.0)
    p_NK = teacher.logprobs.to(student_NV.dtype).masked_fill(~mask, 0.0)

    if spec.support == "sampled":
        kd = -(p_NK.exp() * mask * q_NK.clamp_min(EMPTY)).sum(-1)
        return kd if teacher.entropy is None else kd - teacher.entropy * mask.any(-1)
    if spec.support == "renormalize":
        q_NK, p_NK = (_condition(x, mask) for x in (q_NK, p_NK))
        return plain_divergence(p_NK, q_NK, spec, mask)

    # A missing entry repeats the row's first one, so that no write can undo another.
    filled = torch.where(mask, ids, ids.gather(1, mask.long().argmax(-1, keepdim=True)))
    in_support = torch.zeros_like(student_NV, dtype=torch.bool)
    in_support = in_support.scatter(1, filled, mask.any(-1, keepdim=True).expand_as(filled))
    has_rest = ~in_support.all(-1)
    rest_NV = student_NV.clamp_min(EMPTY).masked_fill(in_support & has_rest[:, None], -torch.inf)
    rest = rest_NV.logsumexp(-1)
    tailed = (has_rest & mask.any(-1))[:, None]
    assert teacher.tail_logprob is not None  # check_shapes sees to it
    p_bins = torch.cat([p_NK, teacher.tail_logprob.to(student_NV.dtype)[:, None]], 1)
    q_bins = torch.cat([q_NK, rest[:, None].masked_fill(~tailed, 0.0)], 1)
    return plain_divergence(p_bins, q_bins, spec, torch.cat([mask, tailed], 1), has_tail=True)


def _condition(logprobs_NK: Tensor, mask_NK: Tensor) -> Tensor:
    total = logprobs_NK.masked_fill(~mask_NK, -torch.inf).logsumexp(-1, keepdim=True)
    return (logprobs_NK - total.nan_to_num(neginf=0.0)).masked_fill(~mask_NK, 0.0)


def teacher_logits(
    teacher: DenseLogits | DenseTeacher, vocab_size: int, dtype: torch.dtype
) -> Tensor:
    """The teacher's logits over the student's ids, [N, V]; -inf where the teacher has no id."""
    if isinstance(teacher, DenseLogits):
        logits = teacher.logits.detach()[:, :vocab_size].to(dtype)
    else:
        head = F.linear(teacher.hidden.detach().to(dtype), teacher.weight[:vocab_size].to(dtype))
        if teacher.bias is not None:
            head = head + teacher.bias[:vocab_size]
        logits = teacher.logit_transform(head).detach()
    return F.pad(logits, (0, vocab_size - logits.shape[1]), value=-torch.inf)
