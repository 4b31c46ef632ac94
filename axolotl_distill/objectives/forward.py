"""The student's forward pass with the loss inside.

The loss is computed within `forward` of the causal LM, which the trainer calls through whatever
wraps it: DDP and FSDP see an ordinary forward, so gradients are synchronised and parameters
gathered as for any other loss.
"""

import functools
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from axolotl_distill.objectives.base import Objective
from axolotl_distill.objectives.student import Student
from axolotl_distill.signal.batch import COLUMNS, IGNORE, TARGETS, WEIGHTS
from axolotl_distill.signal.source import SignalSource

OBJECTIVES = "distill_objectives"


class Metrics(UserDict[str, tuple[Tensor, Tensor]]):
    """By name a sum and what it is divided by. In mixed precision FSDP2 makes bf16 of whatever it
    finds in an output; it looks into a dict, and not into this."""


@dataclass
class DistillModelOutput(ModelOutput):
    """loss: scalar. metrics: of this batch's positions, as `Term` has them, and `loss`, whose
    second number is the sum of the weights."""

    loss: Tensor | None = None
    metrics: Metrics | None = None


def attach_distill_forward(
    causal_lm: PreTrainedModel, objectives: Sequence[Objective], source: SignalSource | None
) -> None:
    """Replace `causal_lm.forward` by one that returns the objectives' loss when given targets.

    Without `shift_labels` (generation, other callers) it is the model's own forward. With them, the
    batch may carry the other columns of signal/batch.py. With w_t the `target_weight` of a position
    (1 where there is none) and l_t the objectives' sum there,

        loss = sum_t w_t l_t / num_items_in_batch

    The divisor is the Trainer's sum of w_t over the optimizer step; where it is not given, it is
    that of the batch. The loss of a mixture's routers is added, by the batch's share of the step.

    source  asked once a batch, where an objective wants a signal
    """
    wanted = any(objective.wants for objective in objectives)
    assert source is not None or not wanted, "an objective wants a signal, and there is no source"
    asked = source if wanted else None
    layered = [objective for objective in objectives if objective.student_layers]
    assert len(layered) <= 1, "what layers hand on is kept for one objective"
    student = Student(causal_lm, layered[0].student_layers if layered else ())
    names = [column.name for column in COLUMNS]
    parts = nn.ModuleList(objectives)
    causal_lm.add_module(OBJECTIVES, parts)
    unsaved = [f"{OBJECTIVES}.{name}" for name in parts.state_dict()]
    before = getattr(causal_lm, "_keys_to_ignore_on_save", None) or ()
    causal_lm._keys_to_ignore_on_save = {*before, *unsaved}

    @functools.wraps(student.forward)
    def forward(*args: Any, num_items_in_batch: Tensor | int | None = None, **kwargs: Any) -> Any:
        columns = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        if TARGETS.name not in columns:
            return student.forward(*args, **kwargs)
        rows, targets, weights = _supervised(columns)
        read = {"input_ids": args[0], **kwargs} if args else kwargs
        signal = None if asked is None else asked.signal(columns, rows, read)
        output = student.run(args, kwargs, rows)
        terms = [
            objective(output, signal if objective.wants else None, targets, weights)
            for objective in parts
        ]

        total = sum(term.total for term in terms)
        items = (targets != IGNORE).sum() if weights is None else weights.sum()
        divisor = items if num_items_in_batch is None else num_items_in_batch
        loss = _per_item(total, divisor)
        if output.router_loss is not None:
            loss = loss + output.router_loss * _per_item(items, divisor)
        metrics = Metrics(loss=(total.detach(), items))
        for term in terms:
            assert not metrics.keys() & term.metrics.keys(), "two objectives log one name"
            metrics |= term.metrics
        return DistillModelOutput(loss=loss, metrics=metrics)

    causal_lm.forward = forward
    causal_lm.distill_forward = forward  # type: ignore[assignment]  # torch: tensors, modules only


def has_distill_forward(causal_lm: PreTrainedModel) -> bool:
    """Whether the forward of `attach_distill_forward` is the outermost, but for the wrapper of
    accelerate's mixed precision."""
    own = vars(causal_lm)
    forward = own.get("_original_forward", own.get("forward"))
    return forward is not None and forward is own.get("distill_forward")


def _supervised(columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """(rows, targets, weights), [M + 1] each: an ignored row, then the positions that predict, as
    numbers in [0, B * S), with their target and its weight.

    With the ignored row a batch that supervises nothing still gives every parameter its (zero)
    gradient, which DDP waits for, and nothing branches on how many there are.
    """
    targets = columns[TARGETS.name].flatten()
    found = torch.nonzero(targets != IGNORE).squeeze(1)
    rows = torch.cat([found.new_zeros(1), found])
    targets = targets[rows]
    targets[0] = IGNORE
    if WEIGHTS.name not in columns:
        return rows, targets, None
    return rows, targets, columns[WEIGHTS.name].flatten()[rows].masked_fill(targets == IGNORE, 0.0)


def _per_item(total: Tensor, items: Tensor | int | float) -> Tensor:
    """total / items, and total (a sum of nothing, 0) where there are no items."""
    if not isinstance(items, Tensor):
        return total / (items or 1)
    return total / items.masked_fill(items == 0, 1)
