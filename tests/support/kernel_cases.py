"""Random inputs for the loss, and its formula over the whole vocabulary in float64."""

import math
from dataclasses import dataclass

import torch
from distill_kernels import (
    DenseLogits,
    DenseTeacher,
    DistillOutput,
    DistillSpec,
    LogitTransform,
    SparseTeacher,
    fused_linear_distill,
)
from torch import Tensor

IGNORE = -100


@dataclass
class Case:
    """hidden [N, D], weight [V, D], bias [V], labels [N], a teacher of N rows, weights [N]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    teacher: SparseTeacher | DenseTeacher | DenseLogits
    transform: LogitTransform
    weights: Tensor | None = None

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        return leaf(self.hidden), leaf(self.weight), leaf(self.bias)


def make_case(
    *,
    rows: int = 13,
    dim: int = 16,
    vocab: int = 101,
    k: int = 7,
    temperature: float = 1.0,
    sampled: bool = False,
    ragged: bool = True,
    bias: bool = False,
    weighted: bool = False,
    transform: LogitTransform | None = None,
    sharpness: float = 3.0,
    seed: int = 0,
) -> Case:
    """Rows differ: some ignored, some with fewer entries, some with none."""
    g = torch.Generator().manual_seed(seed)
    teacher_logprobs = (
        torch.randn(rows, vocab, generator=g, dtype=torch.float64) * sharpness / temperature
    ).log_softmax(-1)
    if sampled:
        draws = torch.multinomial(teacher_logprobs.exp(), k, replacement=True, generator=g)
        counts = torch.zeros(rows, vocab, dtype=torch.float64)
        counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
        top = counts.topk(min(k, vocab))
        ids = torch.where(top.values > 0, top.indices, -1)
        logprobs = (top.values / k).log()
    else:
        top = teacher_logprobs.topk(k)
        ids, logprobs = top.indices.clone(), top.values.clone()
    if ragged:
        for row in range(0, rows, 4):
            kept = (row // 4) % max(k, 1)
            ids[row, kept:] = -1
    gone = ids < 0
    logprobs = logprobs.masked_fill(gone, -torch.inf)
    if sampled:  # shares of draws always sum to 1
        logprobs = logprobs - logprobs.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
    held = torch.zeros(rows, vocab, dtype=torch.bool)
    for row in range(rows):
        held[row, ids[row][~gone[row]]] = True
    tail = teacher_logprobs.masked_fill(held, -torch.inf).logsumexp(-1)
    labels = torch.randint(0, vocab, (rows,), generator=g)
    labels[2::5] = IGNORE
    return Case(
        hidden=torch.randn(rows, dim, generator=g),
        weight=torch.randn(vocab, dim, generator=g) * 0.5,
        bias=torch.randn(vocab, generator=g) * 0.3 if bias else None,
        labels=labels,
        teacher=SparseTeacher(
            ids=ids,
            logprobs=logprobs,
            tail_logprob=tail,
            entropy=-(teacher_logprobs.exp() * teacher_logprobs).sum(-1) if sampled else None,
        ),
        transform=transform or LogitTransform(),
        weights=torch.rand(rows, generator=g) * 3 if weighted else None,
    )


def oracle(case: Case, spec: DistillSpec) -> tuple[Tensor, list[Tensor | None]]:
    """(loss, gradients of hidden, weight and bias) in float64, one row and one bin at a time."""
    hidden, weight, bias = case.leaves(torch.float64)
    total = hidden.new_zeros(())
    count = 0.0
    for row, label in enumerate(case.labels.tolist()):
        if label == IGNORE:
            continue
        w = 1.0 if case.weights is None else case.weights[row].item()
        count += w
        head = weight @ hidden[row] + (0.0 if bias is None else bias)
        z = head * case.transform.scale
        if case.transform.softcap is not None:
            z = case.transform.softcap * torch.tanh(z / case.transform.softcap)
        logprobs = torch.log_softmax(z, 0)
        smooth = spec.label_smoothing
        ce = -(1 - smooth) * logprobs[label]
        if smooth:
            ce = ce - smooth * logprobs.mean()
        log_p, log_q, has_tail = _bins(case, spec, row, torch.log_softmax(z / spec.temperature, 0))
        if log_p is None:
            total = total + w * ce
            continue
        if spec.support == "sampled":
            kd = -(log_p.exp() * log_q).sum() - case.teacher.entropy[row].double()
        else:
            kd = naive_divergence(log_p, log_q, spec, has_tail)
        total = total + w * ((1 - spec.alpha) * ce + spec.alpha * spec.temperature**2 * kd)
    if spec.reduction == "mean":
        total = total / (count or 1.0)
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    found = torch.autograd.grad(total, leaves, allow_unused=True) if count else [None] * 3
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=False)]
    return total.detach(), [*grads, *[None] * (3 - len(grads))]


def _bins(
    case: Case, spec: DistillSpec, row: int, log_q: Tensor
) -> tuple[Tensor | None, Tensor | None, bool]:
    """(the teacher's and the student's logprobs of the bins, whether the last one is the rest)."""
    if not isinstance(case.teacher, SparseTeacher):
        return torch.log_softmax(dense_logits(case, row) / spec.temperature, 0), log_q, False
    ids = [i for i in case.teacher.ids[row].tolist() if i >= 0]
    if not ids:
        return None, None, False
    log_p = case.teacher.logprobs[row][: len(ids)].double()
    student = log_q[torch.tensor(ids)]
    if spec.support == "sampled":
        return log_p, student, False
    if spec.support == "renormalize":
        return log_p.log_softmax(0), student.log_softmax(0), False
    if len(ids) == log_q.numel():
        return log_p, student, False
    rest = torch.ones_like(log_q, dtype=torch.bool)
    rest[torch.tensor(ids)] = False
    tail = case.teacher.tail_logprob[row].double()
    log_rest = log_q[rest].clamp_min(-1e30).logsumexp(0)
    return torch.cat([log_p, tail[None]]), torch.cat([student, log_rest[None]]), True


def dense_logits(case: Case, row: int) -> Tensor:
    """The teacher's logits over the student's ids, float64 [V]; -inf where it has none."""
    vocab = case.weight.shape[0]
    if isinstance(case.teacher, DenseLogits):
        logits = case.teacher.logits[row].double()
    else:
        logits = case.teacher.weight.double() @ case.teacher.hidden[row].double()
        logits = case.teacher.logit_transform(logits)
    out = torch.full((vocab,), -torch.inf, dtype=torch.float64)
    out[: min(vocab, logits.numel())] = logits[:vocab]
    return out


def naive_divergence(
    log_p: Tensor, log_q: Tensor, spec: DistillSpec, has_tail: bool = False
) -> Tensor:
    """The equation of spec.divergence for logprobs of bins [B] in float64.

    Of masses that do not sum to one, KL(a || b) is sum b - a + a log(a/b).
    """
    log_p, log_q = log_p.clamp_min(-100.0), log_q.clamp_min(-1e30)

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_b.exp() - log_a.exp() + log_a.exp() * (log_a - log_b)).sum()

    def mixture(share: float) -> Tensor:
        return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))

    name, beta, skew = spec.divergence, spec.beta, spec.skew
    if name == "jsd" and 0 < beta < 1:
        m = mixture(beta)
        return kl(log_p, m) / (1 - beta) + kl(log_q, m) / beta
    if name == "forward_kl" or (name == "jsd" and beta == 0):
        return kl(log_p, log_q)
    if name in ("reverse_kl", "jsd"):
        return kl(log_q, log_p)
    if name == "skew_forward_kl":
        return kl(log_p, mixture(skew) if skew else log_q)
    if name == "skew_reverse_kl":
        return kl(log_q, mixture(1 - skew) if skew else log_p)
    p, q = log_p.exp(), log_q.exp()
    if name == "tvd":
        return (p - q).abs().sum() / 2
    assert name == "adaptive_kl", name
    count = p.numel() - has_tail
    head, mass = [], 0.0
    for i in sorted(range(count), key=lambda i: -p[i]):
        if mass < spec.akl_mu:
            head.append(i)
        mass += p[i].item()
    gap = (p - q).abs().detach()
    weight = gap[head].sum() / gap.sum() if gap.sum() > 0 else 0.5
    return weight * kl(log_p, log_q) + (1 - weight) * kl(log_q, log_p)


def relative_error(seen: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; absolute where that is zero."""
    difference = (seen.double().cpu() - expected.double().cpu()).norm().item()
    size = expected.double().norm().item()
    return difference / size if size else difference


def run(
    case: Case, spec: DistillSpec, backend: str, dtype: torch.dtype = torch.float32
) -> tuple[DistillOutput, list[Tensor | None]]:
    """The fused loss and the gradients of hidden, weight and bias."""
    hidden, weight, bias = case.leaves(dtype)
    out = fused_linear_distill(
        hidden,
        weight,
        case.teacher,
        case.labels,
        spec=spec,
        weights=case.weights,
        bias=bias,
        logit_transform=case.transform,
        backend=backend,
    )
    out.loss.backward()
    return out, [x if x is None else x.grad for x in (hidden, weight, bias)]


def check(
    case: Case,
    spec: DistillSpec,
    backend: str,
    tolerance: float = 5e-6,
    *,
    may_cancel: bool = False,
) -> None:
    """Hold value and gradients to the oracle's.

    may_cancel   of random shapes, some are so small that the student is all but certain of the
                 label. Then the loss is a difference of two almost equal logits, which is known to
                 a few roundings of the logits, however small it is itself; these are allowed too
    """
    loss, grads = oracle(case, spec)
    out, found = run(case, spec, backend)
    hidden, weight = case.hidden.double(), case.weight.double()
    nats = 4 * torch.finfo(torch.float32).eps * (1 + (hidden @ weight.T).abs().max().item())
    nats *= case.transform.scale * max(1.0, spec.temperature)
    nats *= may_cancel * (hidden.shape[0] if spec.reduction == "sum" else 1)
    longest = [weight.norm(dim=1).max().item(), hidden.norm(dim=1).max().item(), 1.0]
    assert is_close(out.loss.detach(), loss, tolerance, nats)
    for seen, expected, length in zip(found, grads, longest, strict=True):
        assert (seen is None) == (expected is None)
        if seen is not None:
            assert torch.isfinite(seen).all()
            assert is_close(seen, expected, tolerance, nats * length)


def is_close(seen: Tensor, expected: Tensor, tolerance: float, rounding: float) -> bool:
    error = (seen.double().cpu() - expected).norm().item()
    return error <= max(tolerance * expected.norm().item(), rounding)
