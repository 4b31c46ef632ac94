"""The loss on materialised logits, written as its formula: the oracle and the fallback."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels.spec import IGNORE, DistillOutput, DistillSpec
from distill_kernels.teacher import SparseTeacher


def distill_loss(
    logits: Tensor, teacher: SparseTeacher, labels: Tensor, *, spec: DistillSpec
) -> DistillOutput:
    """The loss of `spec` for logits that already exist, by plain autograd.

    logits  [N, V], any float type; computed in fp32, or in fp64 when given fp64
    labels  int64 [N]: the token that row n predicts; -100 = the row counts for nothing

    Clear before fast. Raises ValueError when shapes or teacher do not fit the spec.
    """
    check_inputs(logits.shape[0], teacher, labels, spec)
    logits_NV = logits if logits.dtype == torch.float64 else logits.float()
    labelled = labels != IGNORE
    taught = labelled & (teacher.ids >= 0).any(-1)

    ce_N = F.cross_entropy(logits_NV, labels, reduction="none", ignore_index=IGNORE)
    student_NV = (logits_NV / spec.temperature).log_softmax(-1)
    kd_N = torch.where(taught, forward_kl(student_NV, teacher, spec.support), 0.0)

    ce_weight = torch.where(taught, 1.0 - spec.alpha, 1.0)
    loss = (ce_weight * ce_N + spec.alpha * spec.temperature**2 * kd_N).sum()
    if spec.reduction == "mean":
        loss = loss / labelled.sum().clamp_min(1)

    with torch.no_grad():
        agree_N = logits_NV.argmax(-1) == teacher_top1(teacher)
        return DistillOutput(
            loss=loss,
            kd=kd_N.detach().sum(),
            ce=ce_N.detach().sum(),
            num_tokens=labelled.sum(),
            num_teacher_tokens=taught.sum(),
            teacher_mass=(head_mass(teacher) * taught).sum(),
            top1_agreement=(agree_N & taught).sum(),
        )


def forward_kl(student_NV: Tensor, teacher: SparseTeacher, support: str) -> Tensor:
    """sum_bins p (log p - log q) in nats, [N]; student_NV holds logprobs at the temperature.

    tail_bucket: bins are the entries and the rest. The student's rest is a log-sum-exp over the
    other tokens, not 1 - sum, so nothing cancels and the value is a true KL, never negative.
    renormalize: bins are the entries, both sides conditioned on them.
    sampled: -H(p) - sum_k w_k log q_k with w_k the share of draws; its expectation is the KL over
    the whole vocabulary (arXiv 2503.16870).
    Rows without entries give 0.
    """
    mask = teacher.ids >= 0
    ids = teacher.ids.clamp_min(0)
    q_NK = student_NV.gather(1, ids).masked_fill(~mask, 0.0)
    p_NK = teacher.logprobs.to(student_NV.dtype).masked_fill(~mask, 0.0)
    weight = p_NK.exp() * mask

    if support == "sampled":
        kl = -(weight * q_NK).sum(-1)
        return kl if teacher.entropy is None else kl - teacher.entropy * mask.any(-1)
    if support == "renormalize":
        q_NK, p_NK = (_condition(x, mask) for x in (q_NK, p_NK))
        return (p_NK.exp() * mask * (p_NK - q_NK)).sum(-1)

    # A missing entry repeats the row's first one, so that no write can undo another.
    filled = torch.where(mask, ids, ids.gather(1, mask.long().argmax(-1, keepdim=True)))
    in_support = torch.zeros_like(student_NV, dtype=torch.bool)
    in_support = in_support.scatter(1, filled, mask.any(-1, keepdim=True).expand_as(filled))
    has_rest = ~in_support.all(-1)
    rest = student_NV.masked_fill(in_support & has_rest[:, None], -torch.inf).logsumexp(-1)
    p_rest = teacher.tail_logprob.to(student_NV.dtype)
    tailed = has_rest & torch.isfinite(p_rest) & mask.any(-1)
    p_rest = p_rest.masked_fill(~tailed, 0.0)
    tail = torch.where(tailed, p_rest.exp() * (p_rest - rest), 0.0)
    return (weight * (p_NK - q_NK)).sum(-1) + tail


def _condition(logprobs_NK: Tensor, mask_NK: Tensor) -> Tensor:
    total = logprobs_NK.masked_fill(~mask_NK, -torch.inf).logsumexp(-1, keepdim=True)
    return (logprobs_NK - total.nan_to_num(neginf=0.0)).masked_fill(~mask_NK, 0.0)


def teacher_top1(teacher: SparseTeacher) -> Tensor:
    """The teacher's likeliest token, int64 [N]; -1 for a row without entries."""
    best = teacher.logprobs.masked_fill(teacher.ids < 0, -torch.inf).argmax(-1, keepdim=True)
    return teacher.ids.gather(1, best).squeeze(1)


def head_mass(teacher: SparseTeacher) -> Tensor:
    """Teacher probability that the entries hold, fp32 [N]; 1 where no tail is known."""
    if teacher.tail_logprob is None:
        return torch.ones_like(teacher.logprobs[:, 0])
    return -torch.expm1(teacher.tail_logprob)


def check_inputs(num_rows: int, teacher: SparseTeacher, labels: Tensor, spec: DistillSpec) -> None:
    """Raises ValueError when rows do not match or the teacher lacks what the support needs."""
    for name, size in (("labels", labels.shape[0]), ("teacher", teacher.ids.shape[0])):
        if size != num_rows:
            raise ValueError(f"{name} has {size} rows, the student has {num_rows}")
    if spec.support == "tail_bucket" and teacher.tail_logprob is None:
        raise ValueError(
            "support='tail_bucket' needs teacher.tail_logprob at the spec's temperature; "
            "give it, or use support='renormalize'"
        )
