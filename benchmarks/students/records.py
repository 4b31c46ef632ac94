"""What a teacher can leave behind of a position, and what it costs: the contenders.

A kind is written `name:size`. Each takes the teacher's logits over the whole vocabulary and gives
what the loss is taken with, and its bytes. Kinds that the store has go through capture's own code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from distill_kernels import DenseLogits, DistillSpec, SparseTeacher, fused_linear_distill
from distill_kernels.spec import IGNORE, Support
from torch import Tensor
from torch.nn import functional as F

from axolotl_distill.capture.records import make_records
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.store.payloads import Shape, distribution_of

ENTRY_BYTES = 3
"""Seventeen bits of an id and seven of a value, for the kinds that no store has"""
DRAWS_OVERHEAD = 3
"""A length and an entropy"""
AT_ONCE = 128


Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(hidden [N, D], head [V, D], labels [N], alpha) -> a mean over the N positions"""


@dataclass(frozen=True)
class Record:
    """What is known of N positions, as the loss that can be had from it."""

    loss: Loss
    bytes_a_token: float


def fused(
    teacher: SparseTeacher | DenseLogits, support: Support, temperature: float, size: float
) -> Record:
    def loss(hidden: Tensor, head: Tensor, labels: Tensor, alpha: float) -> Tensor:
        spec = DistillSpec(temperature=temperature, alpha=alpha, support=support)
        return fused_linear_distill(hidden, head, teacher, labels, spec=spec).loss

    return Record(loss, size)


def record(kind: str, logits_NV: Tensor, temperature: float, seed: int) -> Record:
    """`kind` of fp32 logits [N, V], for a loss at `temperature`."""
    name, _, size = kind.partition(":")
    return KINDS[name](logits_NV, temperature, size, torch.Generator().manual_seed(seed))


def _nothing(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    def loss(hidden: Tensor, head: Tensor, labels: Tensor, alpha: float) -> Tensor:
        return F.cross_entropy(hidden @ head.t(), labels)

    return Record(loss, 0.0)


def _full(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    return fused(DenseLogits(logits), "tail_bucket", temperature, 4.0 * logits.shape[1])


def _axolotl_kd(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    """Axolotl's own KD plugin with its defaults: the teacher's top K renormalised before and after
    it is tempered, and T^2 on the value that is logged, not on the gradient."""
    from axolotl.integrations.kd.kernels.liger import LigerFusedLinearKLTopKLogprobLoss

    top = logits.topk(int(size))
    logprobs = (top.values.log_softmax(-1) / temperature).log_softmax(-1)

    def loss(hidden: Tensor, head: Tensor, labels: Tensor, alpha: float) -> Tensor:
        kd = LigerFusedLinearKLTopKLogprobLoss(
            1 - alpha, alpha, temperature, 0.0, compiled=False, normalize_topk=False
        )
        # It shifts the labels itself, and so never sees the last one.
        unshifted = labels.roll(1)
        unshifted[0] = IGNORE
        rows = (top.indices, logprobs, torch.ones_like(top.indices), unshifted)
        return kd(head, hidden[None], *(row[None] for row in rows)) / len(labels)

    return Record(loss, 8.0 * int(size))


def _stored(key: str, support: Support) -> Callable[..., Record]:
    """Through capture's own code, by the key that gives a record's size."""

    def make(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
        given = float(size) if key == "p" else int(size)
        at = {"sampling_temperature": temperature}
        if support != "sampled":
            at = {"temperatures": [temperature]}
        method = {key: given, **at}
        args = CaptureArgs.model_validate({"teacher": "-", "output": "-", **method})
        batch = make_records(logits, args, seed=int(torch.randint(1 << 31, (1,), generator=rng)))
        lengths = torch.from_numpy(batch.lengths)
        entries = torch.full((len(batch), int(lengths.max())), -1, dtype=torch.int32)
        inside = torch.arange(entries.shape[1]) < lengths[:, None]
        entries[inside] = torch.from_numpy(batch.entries.view("int32"))
        teacher = decode_entries(
            entries,
            vocab_size=logits.shape[-1],
            sampled=support == "sampled",
            temperature=temperature,
            tail=torch.from_numpy(batch.tail[:, args.temperatures.index(temperature)])
            if support == "tail_bucket"
            else None,
            entropy=None if batch.entropy is None else torch.from_numpy(batch.entropy),
        )
        shape = Shape(logits.shape[1], args.temperatures, len(batch), len(batch.entries))
        stored = sum(array.nbytes for array in distribution_of(args).pack(batch, shape).values())
        return fused(teacher, support, temperature, stored / len(batch))

    return make


def _teacher_renormalised(
    logits: Tensor, temperature: float, size: str, rng: torch.Generator
) -> Record:
    """The teacher sums to one over its top K, the student over everything."""
    top = (logits / temperature).topk(int(size))
    # Cross-entropy with weights that sum to one is what `sampled` computes.
    teacher = SparseTeacher(top.indices, top.values.log_softmax(-1))
    return fused(teacher, "sampled", temperature, 4.0 * int(size))


def _independent(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    """n independent draws: Sparse Logit Sampling, arXiv 2503.16870."""
    drawn = _draws((logits / temperature).softmax(-1), int(size), rng)
    weight = torch.full(drawn.shape, 1 / int(size))
    return _weighted(torch.zeros_like(logits).scatter_add_(1, drawn, weight), temperature)


def _topk_and_draws(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    """The likeliest k exactly and n draws from the rest, each with its share of the rest's mass."""
    k, n = map(int, size.split("+"))
    scaled = logits / temperature
    log_p = scaled - scaled.logsumexp(-1, keepdim=True)
    top = log_p.topk(k)
    rest = log_p.exp().scatter(1, top.indices, 0.0)
    mass = rest.sum(-1, keepdim=True).clamp_min(1e-30)
    drawn = _draws(rest + 1e-30, n, rng)
    dense = torch.zeros_like(log_p).scatter_add_(1, drawn, (mass / n).expand_as(drawn))
    dense.scatter_(1, top.indices, top.values.exp())
    return _weighted(dense, temperature)


def _flat_draws(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    """Draws from the root of the distribution, weighed by p over the proposal, to a sum of one."""
    n = int(size)
    scaled = logits / temperature
    proposal = (scaled / 2).softmax(-1)
    drawn = _draws(proposal, n, rng)
    weight = scaled.softmax(-1).gather(1, drawn) / proposal.gather(1, drawn)
    weight = weight / weight.sum(-1, keepdim=True)
    dense = torch.zeros_like(logits).scatter_add_(1, drawn, weight)
    return _weighted(dense, temperature)


def _systematic(logits: Tensor, temperature: float, size: str, rng: torch.Generator) -> Record:
    """n draws at even distances along the cumulative distribution."""
    n = int(size)
    scaled = (logits / temperature).split(AT_ONCE)
    counts = torch.cat([_evenly(part.double().softmax(-1) * n, rng) for part in scaled])
    return _weighted(counts / n, temperature)


def _evenly(expected_NV: Tensor, rng: torch.Generator) -> Tensor:
    """Whole numbers whose expectations are those given, of rows that sum to (nearly) whole ones or
    not: each a floor or a ceiling."""
    start = torch.rand((len(expected_NV), 1), generator=rng, dtype=torch.float64)
    # A sum that should be whole may be below it by rounding.
    steps = (expected_NV.cumsum(-1) + start + 1e-9).floor()
    return torch.diff(steps, prepend=torch.zeros_like(start), dim=-1)


def _draws(weights_NV: Tensor, number: int, rng: torch.Generator) -> Tensor:
    return torch.multinomial(weights_NV, number, replacement=True, generator=rng)


def _weighted(dense_NV: Tensor, temperature: float) -> Record:
    """Of the weights that are not 0."""
    kept = dense_NV > 0
    lengths = kept.sum(-1)
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(inside.shape, -1)
    ids[inside] = kept.nonzero()[:, 1]
    logprobs = torch.full(inside.shape, -torch.inf)
    logprobs[inside] = dense_NV[kept].float().log()
    size = ENTRY_BYTES * lengths.float().mean().item() + DRAWS_OVERHEAD
    return fused(SparseTeacher(ids, logprobs), "sampled", temperature, size)


KINDS: dict[str, Callable[..., Record]] = {
    "sft": _nothing,
    "full": _full,
    "axolotl_kd": _axolotl_kd,
    "tail_bucket": _stored("k", "tail_bucket"),
    "nucleus": _stored("p", "tail_bucket"),
    "renormalized": _stored("k", "renormalize"),
    "teacher_renormalized": _teacher_renormalised,
    "sampled": _stored("draws", "sampled"),
    "independent": _independent,
    "systematic": _systematic,
    "topk_and_draws": _topk_and_draws,
    "flat_draws": _flat_draws,
}
