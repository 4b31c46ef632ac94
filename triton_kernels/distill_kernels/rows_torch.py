"""The row math in plain torch: logits of a chunk in, gradients of the chunk out, in place.

With s = z / T and q the student's probabilities of a row's bins, divergences.py gives
g = dD/ds for every bin. A token of a bin that holds many has its share of the bin's slope:

    dD/ds_k = g_k                              on an entry
    dD/ds_j = g_tail * softmax_rest_j          off the entries

where softmax_rest is the student's softmax over the tokens that are not entries. Off the entries
this and the slope of the cross-entropy are row scalars times exponentials, so the vocabulary
needs one exponential (two where T is not 1); the K entries are then written over it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill_kernels.divergences import divergence
from distill_kernels.reference import taught_rows, teacher_top1
from distill_kernels.shard import WHOLE, VocabShard
from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.teacher import SparseTeacher

MASKED = -1e30
"""A logit whose exponential is 0 and whose product with 0 is not NaN, as that of -inf is."""


@dataclass
class RowValues:
    """Per-row results of a chunk, fp32 [C]; 0 in rows without a label (kd, top1: a teacher)."""

    loss: Tensor
    kd: Tensor
    ce: Tensor
    top1: Tensor
    entropy: Tensor


def rows_torch(
    logits_CV: Tensor,
    teacher: SparseTeacher,
    labels_C: Tensor,
    spec: DistillSpec,
    with_grad: bool,
    scratch_CV: Tensor,
    shard: VocabShard = WHOLE,
) -> RowValues:
    """fp32 logits_CV is overwritten: by d loss / d logits (sum reduction) when `with_grad`.

    scratch_CV  what it holds counts neither before nor after
    shard       V is the number of ids here; every process of the group gets the same values
    """
    size, temperature = logits_CV.shape[1], spec.temperature
    mask = teacher.ids >= 0
    taught = taught_rows(teacher, labels_C)
    labels = Labels(logits_CV, labels_C, spec, shard)
    index, here = shard.local(teacher.ids, size)
    z_CK = shard.sum(logits_CV.gather(1, index).masked_fill(~here, 0.0))

    # An entry that is not here repeats one that is, so that no write can undo another; where none
    # is, all write what is there already.
    index = torch.where(here, index, index.gather(1, here.long().argmax(-1, keepdim=True)))
    unchanged = logits_CV.gather(1, index)
    logits_CV.scatter_(1, index, torch.where(here.any(-1, keepdim=True), MASKED, unchanged))

    rest_max, rest_top = shard.argmax(*logits_CV.max(-1))
    has_rest = rest_max > 0.5 * MASKED
    best = z_CK.masked_fill(~mask, MASKED).max(-1)
    shift = torch.where(has_rest, rest_max, best.values)[:, None]
    logits_CV.sub_(shift)
    if temperature != 1.0:
        logits_CV.div_(temperature)
    exp_CV = torch.exp(logits_CV, out=scratch_CV)
    sum_exp = shard.sum(exp_CV.sum(-1))
    sum_exp_s = shard.sum(torch.linalg.vecdot(exp_CV, logits_CV))
    lse_rest = sum_exp.log()
    z_CK = (z_CK - shift).masked_fill(~mask, -torch.inf)
    s_CK = z_CK / temperature
    lse = torch.logaddexp(lse_rest, s_CK.logsumexp(-1))
    lse1 = lse
    if temperature != 1.0:
        logits_CV.mul_(temperature).exp_()
        lse1 = torch.logaddexp(shard.sum(logits_CV.sum(-1)).log(), z_CK.logsumexp(-1))

    kd, slope_CK, slope_rest = _sparse(s_CK, lse, lse_rest, has_rest, mask, teacher, spec)
    kd = torch.where(taught, kd, 0.0)
    nll, ce = labels.cross_entropy(lse1 + shift.squeeze(1))
    ce_weight = torch.where(taught, 1.0 - spec.alpha, 1.0) * labels.given
    q_CK = (s_CK - lse[:, None]).exp()
    rest_s = torch.where(has_rest, sum_exp_s * (-lse).exp(), 0.0)
    mean_s = rest_s + (q_CK * s_CK.masked_fill(~mask, 0.0)).sum(-1)
    student_top = torch.where(
        best.values >= rest_max, teacher.ids.gather(1, best.indices[:, None]).squeeze(1), rest_top
    )
    values = RowValues(
        loss=ce_weight * ce + spec.alpha * temperature**2 * kd,
        kd=kd,
        ce=nll,
        top1=(taught & (student_top == teacher_top1(teacher))).float(),
        entropy=(lse - mean_s) * labels.given,
    )
    if not with_grad:
        return values

    kd_weight = spec.alpha * temperature * taught
    rest_scale = (kd_weight * slope_rest)[:, None]
    ce_scale = (ce_weight * (-lse1).exp())[:, None]
    if temperature != 1.0:
        logits_CV.mul_(ce_scale).addcmul_(exp_CV, rest_scale)
    else:
        torch.mul(exp_CV, rest_scale + ce_scale, out=logits_CV)
    slope_CK = kd_weight[:, None] * slope_CK + ce_weight[:, None] * (z_CK - lse1[:, None]).exp()
    logits_CV.scatter_add_(1, index, slope_CK.masked_fill(~here, 0.0))
    labels.subtract_(logits_CV, ce_weight)
    return values


def rows_torch_dense(
    logits_CV: Tensor,
    teacher_CV: Tensor,
    labels_C: Tensor,
    spec: DistillSpec,
    with_grad: bool,
    shard: VocabShard = WHOLE,
) -> RowValues:
    """As rows_torch, for the teacher's logits over the whole vocabulary; both are overwritten."""
    temperature = spec.temperature
    labels = Labels(logits_CV, labels_C, spec, shard)
    best, top = shard.argmax(*logits_CV.max(-1))
    teacher_best, teacher_top = shard.argmax(*teacher_CV.max(-1))
    logits_CV.sub_(best[:, None])
    exp1_CV = torch.exp(logits_CV)
    lse1 = shard.sum(exp1_CV.sum(-1)).log()
    log_q = _log_softmax_(logits_CV, temperature, shard)
    log_p = _log_softmax_(teacher_CV.sub_(teacher_best[:, None]), temperature, shard)

    kd, slope_CV = divergence(log_p, log_q, spec, shard=shard)
    kd = kd * labels.given
    nll, ce = labels.cross_entropy(lse1 + best)
    ce_weight = (1.0 - spec.alpha) * labels.given
    values = RowValues(
        loss=ce_weight * ce + spec.alpha * temperature**2 * kd,
        kd=kd,
        ce=nll,
        top1=(labels.given & (top == teacher_top)).float(),
        entropy=-shard.sum((log_q.exp() * log_q).sum(-1)) * labels.given,
    )
    if with_grad:
        slope_CV.mul_((spec.alpha * temperature * labels.given)[:, None])
        torch.addcmul(slope_CV, exp1_CV, (ce_weight * (-lse1).exp())[:, None], out=logits_CV)
        labels.subtract_(logits_CV, ce_weight)
    return values


class Labels:
    """The label's part of a chunk: what cross-entropy needs of the logits, and its slope."""

    def __init__(self, logits_CV: Tensor, labels_C: Tensor, spec: DistillSpec, shard: VocabShard):
        self.given = labels_C != IGNORE
        self.smoothing = spec.label_smoothing
        self.index, self.here = shard.local(labels_C[:, None], logits_CV.shape[1])
        self.logit = shard.sum(logits_CV.gather(1, self.index) * self.here).squeeze(1)
        if self.smoothing:
            self.vocab_size = shard.whole_size(logits_CV.shape[1])
            self.mean_logit = shard.sum(logits_CV.sum(-1)) / self.vocab_size

    def cross_entropy(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """(without label smoothing, with it), nats [C]; lse [C] of the logits as they came in."""
        nll = (lse - self.logit) * self.given
        if not self.smoothing:
            return nll, nll
        even = (lse - self.mean_logit) * self.given
        return nll, (1 - self.smoothing) * nll + self.smoothing * even

    def subtract_(self, grad_CV: Tensor, weight_C: Tensor) -> None:
        """Turn weight * softmax in grad_CV into the slope of weight * cross-entropy."""
        if self.smoothing:
            grad_CV.sub_((weight_C * (self.smoothing / self.vocab_size))[:, None])
        onehot = (1 - self.smoothing) * weight_C[:, None] * self.here
        grad_CV.scatter_add_(1, self.index, -onehot)


def _sparse(
    s_CK: Tensor,
    lse: Tensor,
    lse_rest: Tensor,
    has_rest: Tensor,
    mask: Tensor,
    teacher: SparseTeacher,
    spec: DistillSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [C], dD/ds on the entries [C, K], factor of exp(s_j) off the entries [C])."""
    log_p = teacher.logprobs.float()
    if spec.support == "renormalize":
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        log_q = s_CK - s_CK.logsumexp(-1, keepdim=True)
        kd, slope_CK = divergence(log_p, log_q, spec, mask=mask)
        return kd, slope_CK, torch.zeros_like(lse)
    log_q = s_CK - lse[:, None]
    if spec.support == "sampled":
        p = log_p.exp()
        kd = -(p * log_q.masked_fill(~mask, 0.0)).sum(-1)
        if teacher.entropy is not None:
            kd = kd - teacher.entropy
        return kd, log_q.exp() - p, (-lse).exp()
    kd, slope = divergence(
        torch.cat([log_p, teacher.tail_logprob.float()[:, None]], 1),
        torch.cat([log_q, (lse_rest - lse)[:, None]], 1),
        spec,
        mask=torch.cat([mask, has_rest[:, None]], 1),
        has_tail=True,
    )
    return kd, slope[:, :-1], torch.where(has_rest, slope[:, -1] * (-lse_rest).exp(), 0.0)


def _log_softmax_(logits_CV: Tensor, temperature: float, shard: VocabShard) -> Tensor:
    """log softmax(logits / T) in place; the row's largest logit is 0."""
    if temperature != 1.0:
        logits_CV.div_(temperature)
    return logits_CV.sub_(shard.sum(logits_CV.exp().sum(-1)).log()[:, None])
