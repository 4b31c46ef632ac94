"""The backend `torch`: logits of a chunk in, gradients of the chunk out, in place.

With s = z / T and q the student's probabilities of a row's bins, divergences.py gives
g = dD/ds for every bin. A token of a bin that holds many has its share of the bin's slope:

    dD/ds_k = g_k                              on an entry
    dD/ds_j = g_tail * softmax_rest_j          off the entries

where softmax_rest is the student's softmax over the tokens that are not entries. Off the entries
this and the slope of the cross-entropy are row scalars times exponentials, so the vocabulary
needs one exponential (two where T is not 1); the K entries are then written over it.
"""

import torch
from torch import Tensor

from distill_kernels.chunk import Chunk, RowValues, concatenate
from distill_kernels.divergences import EMPTY, divergence
from distill_kernels.reduction import weighted
from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.task import Task
from distill_kernels.teacher import SparseTeacher, taught_rows, teacher_top1

BLOCK_BYTES = 2 << 20
"""Logits that are swept at once on a CPU: they stay in its cache."""
SPARSE_TEMPORARIES, DENSE_TEMPORARIES = 4, 32
"""Bytes a logit that are held for a moment where all of a chunk is swept at once."""
RANKING_TEMPORARIES = 28
"""And for each logit of the other members of a shard's group, which adaptive_kl ranks here too."""


def rows(chunk: Chunk) -> tuple[RowValues, Tensor | None]:
    """See RowBackend; a gradient of a low type is a copy."""
    num_rows = chunk.logits_CV.shape[0]
    step = num_rows
    if chunk.logits_CV.device.type == "cpu":
        step = max(1, BLOCK_BYTES // (4 * chunk.extent.widest))
    values = [_block(chunk[start : start + step]) for start in range(0, num_rows, step)]
    grad_CV = None if chunk.scale_C is None else chunk.logits_CV.to(chunk.grad_dtype)
    return concatenate(values, chunk.logits_CV.device), grad_CV


def temporary_bytes(task: Task, device: torch.device, grad_dtype: torch.dtype) -> int:
    """See RowBackend; next to nothing where the work is done in blocks."""
    if device.type == "cpu":
        return 0
    sparse = isinstance(task.teacher, SparseTeacher)
    held = SPARSE_TEMPORARIES if sparse else DENSE_TEMPORARIES
    if not sparse and task.spec.divergence == "adaptive_kl":
        held += RANKING_TEMPORARIES * (task.shard.members - 1)
    return held + 4 * (task.transform.softcap is not None) + 2 * (grad_dtype != torch.float32)


def _block(chunk: Chunk) -> RowValues:
    logits_CV, transform = chunk.logits_CV, chunk.transform
    if chunk.bias_V is not None:
        logits_CV.add_(chunk.bias_V)
    transform.apply_(logits_CV)
    slope_CV = None if chunk.scale_C is None else transform.slope(logits_CV)
    if isinstance(chunk.teacher, SparseTeacher):
        values = _sparse(chunk, chunk.teacher)
    else:
        values = _dense(chunk, chunk.teacher.logits)
    if chunk.scale_C is not None:
        transform.backward_(logits_CV, slope_CV)
    return values


def _sparse(chunk: Chunk, teacher: SparseTeacher) -> RowValues:
    """The logits are overwritten, by scale times d loss / d logits where a scale is given; every
    process of a shard's group gets the same values."""
    logits_CV, scale_C = chunk.logits_CV, chunk.scale_C
    spec, shard = chunk.spec, chunk.shard
    size, temperature = logits_CV.shape[1], spec.temperature
    mask = teacher.ids >= 0
    taught = taught_rows(teacher, chunk.labels_C)
    labels = Labels(chunk)
    logits_CV.clamp_min_(EMPTY)
    index, here = shard.local(teacher.ids, size)
    has_rest = shard.sum(size - here.sum(-1)) > 0
    z_CK = shard.sum(logits_CV.gather(1, index).masked_fill(~here, 0.0))

    # An entry that is not here repeats one that is, so that no write can undo another; where none
    # is, all write what is there already.
    index = torch.where(here, index, index.gather(1, here.long().argmax(-1, keepdim=True)))
    unchanged = logits_CV.gather(1, index)
    logits_CV.scatter_(1, index, torch.where(here.any(-1, keepdim=True), EMPTY, unchanged))

    rest_max, rest_top = shard.argmax(*logits_CV.max(-1))
    some_rest = rest_max > 0.5 * EMPTY
    best = z_CK.masked_fill(~mask, EMPTY).max(-1)
    shift = torch.where(some_rest, rest_max, best.values)[:, None]
    logits_CV.sub_(shift)
    if temperature != 1.0:
        logits_CV.div_(temperature)
    exp_CV = logits_CV.exp()
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

    kd, slope_CK, slope_rest = _over_bins(s_CK, lse, lse_rest, has_rest, teacher, spec)
    kd = torch.where(taught, kd, 0.0)
    nll, ce = labels.cross_entropy(lse1 + shift.squeeze(1))
    ce_weight = torch.where(taught, 1.0 - spec.alpha, 1.0) * labels.given
    q_CK = (s_CK - lse[:, None]).exp()
    # Each term is small; lse less the mean of s would be a difference of two large ones.
    entropy = (q_CK * (lse[:, None] - s_CK).masked_fill(~mask, 0.0)).sum(-1)
    entropy += torch.where(some_rest, (lse * sum_exp - sum_exp_s) * (-lse).exp(), 0.0)
    student_top = torch.where(
        best.values >= rest_max, teacher.ids.gather(1, best.indices[:, None]).squeeze(1), rest_top
    )
    values = RowValues(
        loss=weighted(ce, ce_weight) + spec.alpha * temperature**2 * kd,
        kd=kd,
        ce=nll,
        top1=(taught & (student_top == teacher_top1(teacher))).float(),
        entropy=entropy * labels.given,
    )
    if scale_C is None:
        return values

    kd_weight = spec.alpha * temperature * taught * scale_C
    ce_weight = ce_weight * scale_C
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


def _dense(chunk: Chunk, teacher_CV: Tensor) -> RowValues:
    """As _sparse, for the teacher's logits over the whole vocabulary; both are overwritten."""
    logits_CV, scale_C = chunk.logits_CV, chunk.scale_C
    spec, shard, temperature = chunk.spec, chunk.shard, chunk.spec.temperature
    labels = Labels(chunk)
    logits_CV.clamp_min_(EMPTY)
    best, top = shard.argmax(*logits_CV.max(-1))
    teacher_best, teacher_top = shard.argmax(*teacher_CV.max(-1))
    log_q = logits_CV.sub_(best[:, None])
    lse1 = shard.sum(log_q.exp().sum(-1)).log()
    if temperature == 1.0:
        lse = lse1
    else:
        log_q.div_(temperature)
        lse = shard.sum(log_q.exp().sum(-1)).log()
    log_q.sub_(lse[:, None])
    log_p = teacher_CV.sub_(teacher_best[:, None]).div_(temperature)
    log_p.sub_(shard.sum(log_p.exp().sum(-1)).log()[:, None])

    kd, slope_CV, q_CV = divergence(log_p, log_q, spec, shard=shard, extent=chunk.extent)
    kd = kd * labels.given
    nll, ce = labels.cross_entropy(lse1 + best)
    ce_weight = (1.0 - spec.alpha) * labels.given
    values = RowValues(
        loss=weighted(ce, ce_weight) + spec.alpha * temperature**2 * kd,
        kd=kd,
        ce=nll,
        top1=(labels.given & (top == teacher_top)).float(),
        entropy=-shard.sum(torch.linalg.vecdot(q_CV, log_q)) * labels.given,
    )
    if scale_C is None:
        return values
    ce_weight = ce_weight * scale_C
    kd_weight = (spec.alpha * temperature * labels.given * scale_C)[:, None]
    if spec.alpha == 1.0:
        torch.mul(slope_CV, kd_weight, out=logits_CV)
        return values
    # log_q T + lse T is the shifted logit again.
    softmax_CV = log_q.add_(lse[:, None]).mul_(temperature).sub_(lse1[:, None]).exp_()
    softmax_CV.mul_(ce_weight[:, None]).addcmul_(slope_CV, kd_weight)
    labels.subtract_(logits_CV, ce_weight)
    return values


class Labels:
    """The label's part of a chunk: what cross-entropy needs of the logits, and its slope."""

    def __init__(self, chunk: Chunk):
        logits_CV, shard = chunk.logits_CV, chunk.shard
        self.given = chunk.labels_C != IGNORE
        self.smoothing = chunk.spec.label_smoothing
        self.index, self.here = shard.local(chunk.labels_C[:, None], logits_CV.shape[1])
        self.logit = shard.sum(logits_CV.gather(1, self.index) * self.here).squeeze(1)
        if self.smoothing:
            self.vocab_size = chunk.extent.whole
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


def _over_bins(
    s_CK: Tensor,
    lse: Tensor,
    lse_rest: Tensor,
    has_rest: Tensor,
    teacher: SparseTeacher,
    spec: DistillSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """(D [C], dD/ds on the entries [C, K], factor of exp(s_j) off the entries [C])."""
    mask = teacher.ids >= 0
    log_p = teacher.logprobs.float()
    if spec.support == "renormalize":
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        log_q = s_CK - s_CK.logsumexp(-1, keepdim=True)
        kd, slope_CK, _ = divergence(log_p, log_q, spec, mask=mask)
        return kd, slope_CK, torch.zeros_like(lse)
    log_q = s_CK - lse[:, None]
    if spec.support == "sampled":
        p = log_p.exp()
        kd = -(p * log_q.masked_fill(~mask, 0.0)).sum(-1)
        if teacher.entropy is not None:
            kd = kd - teacher.entropy
        mass = p.sum(-1)
        return kd, mass[:, None] * log_q.exp() - p, mass * (-lse).exp()
    assert teacher.tail_logprob is not None  # check_shapes sees to it
    kd, slope, _ = divergence(
        torch.cat([log_p, teacher.tail_logprob.float()[:, None]], 1),
        torch.cat([log_q, (lse_rest - lse).clamp_min(EMPTY)[:, None]], 1),
        spec,
        mask=torch.cat([mask, has_rest[:, None]], 1),
        has_tail=True,
    )
    spread = torch.where(lse_rest > EMPTY, (-lse_rest).exp(), 0.0)
    return kd, slope[:, :-1], torch.where(has_rest, slope[:, -1], 0.0) * spread
