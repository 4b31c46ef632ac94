"""The same loss by everyone who can compute it. Each function runs forward and backward once.

A contender takes a Case and raises Unavailable where it cannot run: no CUDA, not installed, or a
loss it does not have. Peers are called as their own documentation does, at their default settings
but for `compiled`, which is off on a CPU, where Inductor needs a C++ compiler.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from distill_kernels import DenseTeacher, DistillSpec, SparseTeacher, fused_linear_distill
from torch import Tensor
from torch.nn import functional as F


class Unavailable(Exception):
    """Why a contender does not run here."""


@dataclass
class Case:
    """Inputs of one loss. hidden [N, D] and weight [V, D] are leaves; the teacher has its own."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    sparse: SparseTeacher
    temperature: float
    task: str

    @property
    def cuda(self) -> bool:
        return self.hidden.is_cuda


BETA = 0.5
SPECS = {
    # The loss of peers: the teacher is renormalised over its top K, the student is not.
    "topk_kl": dict(divergence="forward_kl"),
    "tail_kl": dict(divergence="forward_kl"),
    "tail_reverse_kl": dict(divergence="reverse_kl"),
    "dense_kl": dict(divergence="forward_kl"),
    "dense_jsd": dict(divergence="jsd", beta=BETA),
    "ce": dict(alpha=0.0),
}
"""The losses that are compared; a dense jsd is stated in the scale of the literature."""


def ours(case: Case, backend: str) -> None:
    teacher = case.sparse
    if case.task.startswith("dense"):
        teacher = DenseTeacher(case.teacher_hidden, case.teacher_weight)
    spec = DistillSpec(temperature=case.temperature, **SPECS[case.task])
    out = fused_linear_distill(
        case.hidden, case.weight, teacher, case.labels, spec=spec, backend=backend
    )
    scale = BETA * (1 - BETA) if case.task == "dense_jsd" else 1.0
    (out.loss * scale).backward()


def ours_torch(case: Case) -> None:
    ours(case, "torch")


def ours_triton(case: Case) -> None:
    if not case.cuda:
        raise Unavailable("no CUDA device")
    ours(case, "triton")


def naive(case: Case) -> None:
    """The formula on materialised logits, by autograd."""
    logits = (case.hidden @ case.weight.t()).float()
    if case.task == "ce":
        F.cross_entropy(logits, case.labels).backward()
        return
    temperature = case.temperature
    log_q = (logits / temperature).log_softmax(-1)
    if case.task.startswith("dense"):
        with torch.no_grad():
            teacher = (case.teacher_hidden @ case.teacher_weight.t()).float()
            log_p = (teacher / temperature).log_softmax(-1)
        kd = _jsd(log_p, log_q) if case.task == "dense_jsd" else _kl(log_p, log_q)
    else:
        log_p, log_q = _bins(case, log_q)
        kd = _kl(log_q, log_p) if case.task == "tail_reverse_kl" else _kl(log_p, log_q)
    (kd.mean() * temperature**2).backward()


def _bins(case: Case, log_q: Tensor) -> tuple[Tensor, Tensor]:
    sparse = case.sparse
    entries = log_q.gather(1, sparse.ids)
    if case.task == "topk_kl":
        return sparse.logprobs, entries
    rest = log_q.scatter(1, sparse.ids, -torch.inf).logsumexp(-1)
    return (
        torch.cat([sparse.logprobs, sparse.tail_logprob[:, None]], 1),
        torch.cat([entries, rest[:, None]], 1),
    )


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = torch.logsumexp(torch.stack([log_p, log_q]) + torch.tensor(0.5).log(), 0)
    return 0.5 * _kl(log_p, log_m) + 0.5 * _kl(log_q, log_m)


def axolotl_kd(case: Case) -> None:
    """axolotl.integrations.kd, which trains the head always and computes topk_kl only."""
    if case.task != "topk_kl":
        raise Unavailable("has another loss")
    from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss

    loss = LigerFusedLinearKLTopKLogprobLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        temperature=case.temperature,
        beta=0.0,
        compiled=case.cuda,
        compute_ce_loss=False,
        normalize_topk=False,
    )
    mask = torch.ones_like(case.sparse.ids)
    value = loss(
        case.weight,
        case.hidden[None],
        case.sparse.ids[None],
        case.sparse.logprobs[None],
        mask[None],
        case.labels[None],
    )
    (value / case.labels.numel()).backward()


def liger_chunked(case: Case) -> None:
    """liger_kernel.chunked_loss: fused linear JSD in chunked torch."""
    if case.task not in ("dense_jsd", "dense_kl"):
        raise Unavailable("has another loss")
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=BETA if case.task == "dense_jsd" else 0.0,
        temperature=case.temperature,
        compiled=case.cuda,
    )
    value = loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, case.labels)
    (value * case.temperature**2).backward()


def liger_fused(case: Case) -> None:
    """liger_kernel.transformers: Triton fused linear JSD and cross-entropy."""
    if case.task not in ("dense_jsd", "dense_kl", "ce"):
        raise Unavailable("has another loss")
    if not case.cuda:
        raise Unavailable("no CUDA device")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerFusedLinearJSD

    if case.task == "ce":
        LigerFusedLinearCrossEntropyLoss()(case.weight, case.hidden, case.labels).backward()
        return
    beta = BETA if case.task == "dense_jsd" else 0.0
    loss = LigerFusedLinearJSD(jsd_beta=beta, temperature=case.temperature)
    value = loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, case.labels)
    (value * case.temperature**2).backward()


def trl_chunked(case: Case) -> None:
    """TRL 1.16's kernels.chunked_divergence: Triton on CUDA, torch elsewhere."""
    if case.task not in ("dense_jsd", "dense_kl"):
        raise Unavailable("has another loss")
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        raise Unavailable("needs trl 1.16: make benchmark-kernels") from error
    beta = BETA if case.task == "dense_jsd" else 0.0
    value, _ = ChunkedDivergenceFunction.apply(
        case.hidden,
        case.weight,
        None,
        case.teacher_hidden,
        case.teacher_weight,
        None,
        beta,
        case.temperature,
    )
    (value.mean() * case.temperature**2).backward()


def orda(case: Case) -> None:
    """orda-kernel: fused on CUDA; elsewhere its reference, which holds all logits."""
    if case.task not in ("dense_kl", "ce"):
        raise Unavailable("has another loss")
    try:
        from orda_kernel import SeparateTeacher, distillation_loss
    except ImportError as error:
        raise Unavailable("needs orda-kernel: make benchmark-kernels") from error
    distils = case.task == "dense_kl"
    distillation_loss(
        case.hidden,
        case.weight,
        case.labels,
        SeparateTeacher(case.teacher_hidden, case.teacher_weight),
        student_ce_weight=0.0 if distils else 1.0,
        teacher_ce_weight=0.0,
        kl_weight=1.0 if distils else 0.0,
        kl_temperature=case.temperature,
        backend="auto" if case.cuda else "torch",
    ).loss.backward()


def cut_cross_entropy(case: Case) -> None:
    """Apple's cut-cross-entropy with its own defaults, which skip small gradients."""
    if case.task != "ce":
        raise Unavailable("has another loss")
    if not case.cuda:
        raise Unavailable("no CUDA device")
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise Unavailable("needs cut-cross-entropy: make benchmark-kernels") from error
    linear_cross_entropy(case.hidden, case.weight, case.labels).backward()


CONTENDERS: dict[str, Callable[[Case], None]] = {
    "ours (torch)": ours_torch,
    "ours (triton)": ours_triton,
    "naive torch": naive,
    "Axolotl KD": axolotl_kd,
    "Liger chunked": liger_chunked,
    "Liger fused": liger_fused,
    "TRL 1.16": trl_chunked,
    "orda-kernel": orda,
    "cut-cross-entropy": cut_cross_entropy,
}
