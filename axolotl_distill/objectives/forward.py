"""The student's forward pass with the distillation loss inside.

The loss is computed within `forward` of the causal LM, which the trainer calls through whatever
wraps it: DDP and FSDP see an ordinary forward, so gradients are synchronised and parameters
gathered as for any other loss.
"""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from distill_kernels import (
    DistillOutput,
    DistillSpec,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
)
from torch import Tensor, nn
from transformers.utils import ModelOutput

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.objectives.head import PROBE_TOKENS, FusedHead, plan_head
from axolotl_distill.objectives.router import REQUEST, router_loss, router_request, router_weight
from axolotl_distill.signal.batch import ENTRIES, ENTROPY, IGNORE, TAIL, TARGETS, WEIGHTS
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.signal.stored import resolve_support
from axolotl_distill.store import TeacherStore

LOG = logging.getLogger(__name__)
NAMES = tuple(column.name for column in (TARGETS, WEIGHTS, ENTRIES, TAIL, ENTROPY))
DROPPED = ("labels", "logits_to_keep", "skip_logits", REQUEST)


@dataclass(frozen=True)
class LossSettings:
    """What the loss needs to know beside the batch.

    spec        the loss, with reduction "sum"
    backend     of distill_kernels
    vocab_size  of the store: it fixes how an entry's bits are split (1 without a store)
    sampled     whether the store's records are draws
    """

    spec: DistillSpec
    backend: str
    vocab_size: int
    sampled: bool


def loss_settings(args: DistillArgs, stores: Sequence[TeacherStore]) -> LossSettings:
    """The YAML's loss for records of these stores, which `check_stores` found to be alike.

    Without a store it is the cross-entropy on the labels.
    """
    if not stores:
        spec = DistillSpec(
            alpha=0.0,
            label_smoothing=args.label_smoothing,
            support="renormalize",
            reduction="sum",
        )
        return LossSettings(spec=spec, backend=args.backend, vocab_size=1, sampled=False)
    spec = DistillSpec(
        divergence=args.divergence,
        temperature=args.temperature,
        alpha=args.alpha,
        beta=args.beta,
        skew=args.skew,
        akl_mu=args.akl_mu,
        label_smoothing=args.label_smoothing,
        support=resolve_support(stores[0], args),
        reduction="sum",
    )
    return LossSettings(
        spec=spec,
        backend=args.backend,
        vocab_size=stores[0].manifest.vocab_size,
        sampled=spec.support == "sampled",
    )


@dataclass
class DistillModelOutput(ModelOutput):
    """loss: scalar. sums: detached scalars, summed over this batch's supervised tokens."""

    loss: Tensor | None = None
    sums: dict[str, Tensor] | None = None


def attach_distill_forward(causal_lm: nn.Module, settings: LossSettings) -> None:
    """Replace `causal_lm.forward` by one that returns the distillation loss when given targets.

    Without `shift_labels` (generation, other callers) it is the model's own forward. With them, the
    batch may carry the other columns of signal/batch.py; tokens without a record are trained with
    plain cross-entropy. With w_t the `target_weight` of a position (1 where there is none) and l_t
    the loss of the token that it predicts,

        loss = sum_t w_t l_t / num_items_in_batch

    The divisor is the Trainer's sum of w_t over the optimizer step; where it is not given, it is
    that of the batch.
    """
    original = causal_lm.forward
    head: tuple[FusedHead | None, str] | None = None
    request: dict[str, bool] = {}

    @functools.wraps(original)
    def forward(*args: Any, num_items_in_batch: Tensor | int | None = None, **kwargs: Any) -> Any:
        nonlocal head, request
        columns = {name: kwargs.pop(name, None) for name in NAMES}
        shift_labels, target_weight = columns[TARGETS.name], columns[WEIGHTS.name]
        if shift_labels is None:
            return original(*args, **kwargs)
        kwargs = {k: v for k, v in kwargs.items() if k not in DROPPED}
        # A cache is wasted on a loss, and transformers keeps packed documents apart only without.
        kwargs["use_cache"] = False
        if head is None:
            tokens = args[0] if args else kwargs.get("input_ids")
            tokens = None if tokens is None else tokens[:1, :PROBE_TOKENS]
            request = router_request(causal_lm, original, tokens)
            head = plan_head(causal_lm, original, tokens, request)
            if head[0] is None:
                LOG.warning(
                    f"axolotl-distill: {head[1]}; the loss is computed from the model's own "
                    "logits, which takes more memory."
                )

        rows, targets = _supervised(shift_labels)
        teacher = _teacher_of_rows(
            rows,
            settings,
            columns[ENTRIES.name],
            columns[TAIL.name],
            columns[ENTROPY.name],
            shift_labels.device,
        )
        spec, weights = settings.spec, None
        if target_weight is not None:
            weights = target_weight.flatten()[rows].masked_fill(targets == IGNORE, 0.0)
        fused = head[0]
        if fused is None:
            outputs = original(*args, **kwargs, **request)
            logits = outputs.logits.flatten(0, 1)[rows]
            out = distill_loss(logits, teacher, targets, spec=spec, weights=weights)
            aux_loss = getattr(outputs, "aux_loss", None)
        else:
            outputs = causal_lm.base_model(*args, **kwargs, **request)
            hidden = fused.cast(outputs[0].flatten(0, 1)[rows])
            out = _fused_loss(fused, hidden, teacher, targets, weights, spec, settings.backend)
            mask = kwargs.get("attention_mask")
            aux_loss = router_loss(causal_lm, outputs, mask) if request.get(REQUEST) else None

        total, items = out.loss, out.num_tokens if weights is None else weights.sum()
        divisor = items if num_items_in_batch is None else num_items_in_batch
        loss = _per_item(total, divisor)
        if isinstance(aux_loss, Tensor):
            share = _per_item(items, divisor)
            loss = loss + router_weight(causal_lm) * aux_loss.to(loss.device) * share
        return DistillModelOutput(loss=loss, sums=_sums(out, total, items))

    causal_lm.forward = causal_lm.distill_forward = forward


def has_distill_forward(causal_lm: nn.Module) -> bool:
    """Whether the forward of `attach_distill_forward` is the outermost, but for the wrapper of
    accelerate's mixed precision."""
    own = vars(causal_lm)
    forward = own.get("_original_forward", own.get("forward"))
    return forward is not None and forward is own.get("distill_forward")


def _fused_loss(
    head: FusedHead,
    hidden_MD: Tensor,
    teacher: SparseTeacher,
    targets: Tensor,
    weights: Tensor | None,
    spec: DistillSpec,
    backend: str,
) -> DistillOutput:
    def loss(hidden_MD: Tensor) -> tuple[Tensor, ...]:
        out = fused_linear_distill(
            hidden_MD,
            head.weight(),
            teacher,
            targets,
            spec=spec,
            weights=weights,
            bias=head.base.bias,
            low_rank=head.low_rank(hidden_MD),
            logit_transform=head.transform,
            backend=backend,
        )
        return tuple(getattr(out, field.name) for field in fields(out))

    return DistillOutput(*head.in_window(loss, hidden_MD))


def _supervised(targets_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(rows [M + 1], targets [M + 1]): an ignored row, then the flat positions that predict a
    supervised token, and that token.

    With the ignored row a batch that supervises nothing still gives every parameter its (zero)
    gradient, which DDP waits for, and nothing branches on how many there are.
    """
    targets = targets_BS.flatten()
    found = torch.nonzero(targets != IGNORE).squeeze(1)
    rows = torch.cat([found.new_zeros(1), found])
    targets = targets[rows]
    targets[0] = IGNORE
    return rows, targets


def _teacher_of_rows(
    rows: Tensor,
    settings: LossSettings,
    entries_BSK: Tensor | None,
    tail_BS: Tensor | None,
    entropy_BS: Tensor | None,
    device: torch.device,
) -> SparseTeacher:
    if entries_BSK is None:
        entries_MK = torch.full((rows.numel(), 1), -1, dtype=torch.int32, device=device)
    else:
        entries_MK = entries_BSK.flatten(0, 1)[rows]
    return decode_entries(
        entries_MK,
        vocab_size=settings.vocab_size,
        sampled=settings.sampled,
        temperature=settings.spec.temperature,
        tail=None if tail_BS is None else tail_BS.flatten()[rows],
        entropy=None if entropy_BS is None else entropy_BS.flatten()[rows],
    )


def _per_item(total: Tensor, items: Tensor | int | float) -> Tensor:
    """total / items, and total (a sum of nothing, 0) where there are no items."""
    if not isinstance(items, Tensor):
        return total / (items or 1)
    return total / items.masked_fill(items == 0, 1)


def _sums(out: DistillOutput, total: Tensor, items: Tensor) -> dict[str, Tensor]:
    return {
        "loss": total.detach(),
        "weight": items,
        "tokens": out.num_tokens,
        "teacher_tokens": out.num_teacher_tokens,
        "kl": out.kd,
        "ce": out.ce,
        "teacher_mass": out.teacher_mass,
        "top1_agreement": out.top1_agreement,
        "entropy": out.entropy,
    }
