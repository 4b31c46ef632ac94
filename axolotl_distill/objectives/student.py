"""The student at the positions that predict: hidden states before its head, or its logits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.errors import ConfigError
from axolotl_distill.heads.head import PROBE_TOKENS, FusedHead, plan_head
from axolotl_distill.heads.router import REQUEST, router_loss, router_request, router_weight
from axolotl_distill.heads.split import is_tensor_parallel
from axolotl_distill.heads.stack import LayerStates

LOG = logging.getLogger(__name__)
DROPPED = ("labels", "logits_to_keep", "skip_logits", REQUEST)


@dataclass(frozen=True)
class StudentOutput:
    """The student at M positions.

    states       [M, D], the last hidden states in the type that the head takes; without a head,
                 the logits [M, V]
    head         what makes logits of them; None where it can't be told apart from the model
    layers       [M, P, D], what the wanted layers hand on; None where none is wanted
    router_loss  the weighted loss of a mixture's routers, a scalar over the whole batch, or None
    """

    states: Tensor
    head: FusedHead | None
    layers: Tensor | None
    router_loss: Tensor | None


class Student:
    """Runs a causal language model, as far as its head where the head can be fused with the loss.

    Which it is is found out with the first batch, and said where it is the slower one.
    """

    def __init__(self, causal_lm: PreTrainedModel, layers: Sequence[int] = ()):
        self.causal_lm, self.layers = causal_lm, layers
        self.forward = causal_lm.forward
        self._planned = False
        self._head: FusedHead | None = None
        self._request: dict[str, bool] = {}

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Tensor) -> StudentOutput:
        """At `rows`, int64 [M], positions as numbers in [0, B * S); args and kwargs are a call of
        the model's forward."""
        kwargs = {name: value for name, value in kwargs.items() if name not in DROPPED}
        # A cache is wasted on a loss, and transformers keeps packed documents apart only without.
        kwargs["use_cache"] = False
        if not self._planned:
            self._plan(args[0] if args else kwargs.get("input_ids"))
        run = self.forward if self._head is None else self.causal_lm.base_model
        with LayerStates(self.causal_lm, self.layers) as kept:
            outputs = run(*args, **kwargs, **self._request)
        if self._head is None:
            states = outputs.logits.flatten(0, 1)[rows]
            loss = getattr(outputs, "aux_loss", None)
        else:
            states = self._head.cast(outputs[0].flatten(0, 1)[rows])
            mask = kwargs.get("attention_mask")
            wanted = self._request.get(REQUEST)
            loss = router_loss(self.causal_lm, outputs, mask) if wanted else None
        if isinstance(loss, Tensor):
            loss = router_weight(self.causal_lm) * loss.to(states.device)
        else:
            loss = None
        return StudentOutput(states, self._head, kept.at(rows), loss)

    def _plan(self, input_ids: Tensor | None) -> None:
        tokens = None if input_ids is None else input_ids[:1, :PROBE_TOKENS]
        # Dropout draws while it is tried, and a run that is resumed tries again.
        device = None if tokens is None else tokens.device
        with torch.random.fork_rng([device] if device and device.type == "cuda" else []):
            self._request = router_request(self.causal_lm, self.forward, tokens)
            self._head, why = plan_head(self.causal_lm, self.forward, tokens, self._request)
        self._planned = True
        if self._head is None and is_tensor_parallel(self.causal_lm):
            raise ConfigError(
                f"`tensor_parallel_size`: {why}, and the loss cannot be computed from logits that "
                "lie on several processes. Remove the key, and train with DDP or FSDP2."
            )
        if self._head is None:
            LOG.warning(
                f"axolotl-distill: {why}; the loss is computed from the model's own logits, which "
                "takes more memory."
            )
