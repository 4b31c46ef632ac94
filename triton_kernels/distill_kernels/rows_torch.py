"""The row math in plain torch: logits of a chunk in, gradients of the chunk out, in place.

With s = z / T, bins = the entries (and the tail), q the student's bin probabilities and
p the teacher's, forward KL has

    d D / d s_k = q_k - p_k                    on an entry
    d D / d s_j = q_j - p_tail * softmax_rest_j    off the entries

where softmax_rest is the student's softmax over the tokens that are not entries. Written so, no
quotient p_tail / q_tail can overflow. Off the entries both terms are a row scalar times
exp(s_j), so the whole vocabulary needs one exponential and one product; the K entries are then
written over it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.teacher import SparseTeacher


@dataclass
class RowSums:
    """Per-row results of a chunk, fp32 [C]; rows without a label or a teacher hold zeros."""

    loss: Tensor
    kd: Tensor
    ce: Tensor
    top1: Tensor


def rows_torch(
    logits_CV: Tensor,
    teacher: SparseTeacher,
    labels_C: Tensor,
    spec: DistillSpec,
    with_grad: bool,
) -> RowSums:
    """fp32 logits_CV is overwritten: by d loss / d logits (sum reduction) when `with_grad`."""
    temperature = spec.temperature
    labelled = labels_C != IGNORE
    labels = labels_C.clamp_min(0)[:, None]
    mask = teacher.ids >= 0
    taught = labelled & mask.any(-1)

    # A row's support is never empty: without entries it is the label, which leaves the
    # log-sum-exp right and spares a second code path. A missing entry repeats the first one.
    first = torch.where(mask[:, :1], teacher.ids[:, :1], labels)
    support = torch.where(mask, teacher.ids, first)
    counted = mask.clone()
    counted[:, 0] = True

    label_logit = logits_CV.gather(1, labels).squeeze(1)
    z_CK = logits_CV.gather(1, support)
    logits_CV.scatter_(1, support, -torch.inf)
    rest_max, rest_argmax = logits_CV.max(-1)
    shift = torch.where(torch.isinf(rest_max), z_CK.amax(-1), rest_max)[:, None]
    logits_CV.sub_(shift)

    exp1_CV = None
    if temperature != 1.0:
        exp1_CV = logits_CV.exp()
        logits_CV.div_(temperature)
    exp_CV = logits_CV.exp_()

    lse_rest = exp_CV.sum(-1).log()
    s_CK = ((z_CK - shift) / temperature).masked_fill(~counted, -torch.inf)
    lse = torch.logaddexp(lse_rest, s_CK.logsumexp(-1))
    if exp1_CV is None:
        lse1 = lse
    else:
        s1_CK = (z_CK - shift).masked_fill(~counted, -torch.inf)
        lse1 = torch.logaddexp(exp1_CV.sum(-1).log(), s1_CK.logsumexp(-1))

    ce = (lse1 + shift.squeeze(1) - label_logit) * labelled
    kd, grad_CK, rest_scale = _forward_kl(s_CK, lse, lse_rest, mask, teacher, spec.support)
    kd = torch.where(taught, kd, 0.0)

    best = z_CK.masked_fill(~counted, -torch.inf).max(-1)
    student_top = torch.where(
        best.values >= rest_max, support.gather(1, best.indices[:, None]).squeeze(1), rest_argmax
    )
    teacher_top = support.gather(1, teacher.logprobs.argmax(-1, keepdim=True)).squeeze(1)
    ce_weight = torch.where(taught, 1.0 - spec.alpha, 1.0) * labelled
    sums = RowSums(
        loss=ce_weight * ce + spec.alpha * temperature**2 * kd,
        kd=kd,
        ce=ce,
        top1=(taught & (student_top == teacher_top)).float(),
    )
    if not with_grad:
        return sums

    kd_weight = spec.alpha * temperature * taught
    ce_scale = ce_weight * (-lse1).exp()
    grad_CK = grad_CK * kd_weight[:, None]
    q1_CK = (s_CK if exp1_CV is None else s1_CK) - lse1[:, None]
    grad_CK = (grad_CK + ce_weight[:, None] * q1_CK.exp()).masked_fill(~counted, 0.0)

    exp_CV.mul_((kd_weight * rest_scale + (ce_scale if exp1_CV is None else 0.0))[:, None])
    if exp1_CV is not None:
        exp_CV.addcmul_(exp1_CV, ce_scale[:, None])
    exp_CV.scatter_add_(1, support, grad_CK)
    exp_CV.scatter_add_(1, labels, -ce_weight[:, None])
    return sums


def _forward_kl(
    s_CK: Tensor,
    lse: Tensor,
    lse_rest: Tensor,
    mask: Tensor,
    teacher: SparseTeacher,
    support: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [C], d D / d s on the entries [C, K], factor of exp(s_j) off the entries [C])."""
    log_p = teacher.logprobs.float()
    if support == "renormalize":
        log_p = log_p - log_p.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
        norm = s_CK.masked_fill(~mask, -torch.inf).logsumexp(-1).nan_to_num(neginf=0.0)
    else:
        norm = lse
    log_p = log_p.masked_fill(~mask, 0.0)
    p = log_p.exp() * mask
    log_q = (s_CK - norm[:, None]).masked_fill(~mask, 0.0)
    grad = log_q.exp() * mask - p

    if support == "renormalize":
        return (p * (log_p - log_q)).sum(-1), grad, torch.zeros_like(lse)
    if support == "sampled":
        kd = -(p * log_q).sum(-1)
        if teacher.entropy is not None:
            kd = kd - teacher.entropy
        return kd, grad, (-lse).exp()
    has_rest = torch.isfinite(lse_rest)
    log_pt = teacher.tail_logprob.float()
    tailed = has_rest & torch.isfinite(log_pt)
    log_pt = log_pt.masked_fill(~tailed, 0.0)
    log_qt = (lse_rest - lse).masked_fill(~tailed, 0.0)
    kd = (p * (log_p - log_q)).sum(-1) + torch.where(tailed, log_pt.exp() * (log_pt - log_qt), 0.0)
    tail_scale = torch.where(tailed, (log_pt - lse_rest).exp(), 0.0)
    return kd, grad, (-lse).exp() - tail_scale
