"""Random inputs for the loss, and its formula over the whole vocabulary in float64."""

from dataclasses import dataclass

import torch
from distill_kernels import DistillSpec, LogitTransform, SparseTeacher
from torch import Tensor

IGNORE = -100


@dataclass
class Case:
    """hidden [N, D], weight [V, D], bias [V], labels [N] and a sparse teacher of N rows."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    teacher: SparseTeacher
    transform: LogitTransform

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
    )


def oracle(case: Case, spec: DistillSpec) -> tuple[Tensor, list[Tensor | None]]:
    """(loss, gradients of hidden, weight and bias) in float64, one row and one bin at a time."""
    hidden, weight, bias = case.leaves(torch.float64)
    total = hidden.new_zeros(())
    count = 0
    for row, label in enumerate(case.labels.tolist()):
        if label == IGNORE:
            continue
        count += 1
        head = weight @ hidden[row] + (0.0 if bias is None else bias)
        z = head * case.transform.scale
        if case.transform.softcap is not None:
            z = case.transform.softcap * torch.tanh(z / case.transform.softcap)
        ce = -torch.log(torch.softmax(z, 0)[label])
        ids = [i for i in case.teacher.ids[row].tolist() if i >= 0]
        if not ids:
            total = total + ce
            continue
        kd = _kd(case, spec, row, ids, torch.softmax(z / spec.temperature, 0))
        total = total + (1 - spec.alpha) * ce + spec.alpha * spec.temperature**2 * kd
    if spec.reduction == "mean":
        total = total / max(count, 1)
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    found = torch.autograd.grad(total, leaves, allow_unused=True) if count else [None] * 3
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=False)]
    return total.detach(), [*grads, *[None] * (3 - len(grads))]


def _kd(case: Case, spec: DistillSpec, row: int, ids: list[int], q: Tensor) -> Tensor:
    p = case.teacher.logprobs[row][: len(ids)].double().exp()
    student = q[torch.tensor(ids)]
    if spec.support == "sampled":
        return -(p * student.log()).sum() - case.teacher.entropy[row].double()
    if spec.support == "renormalize":
        p, student = p / p.sum(), student / student.sum()
    elif len(ids) < q.numel():
        rest = torch.ones_like(q, dtype=torch.bool)
        rest[torch.tensor(ids)] = False
        p = torch.cat([p, case.teacher.tail_logprob[row].double().exp()[None]])
        student = torch.cat([student, q[rest].sum()[None]])
    return (p * (p.log() - student.log())).sum()


def relative_error(seen: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; absolute where that is zero."""
    difference = (seen.double().cpu() - expected.double().cpu()).norm().item()
    size = expected.double().norm().item()
    return difference / size if size else difference
