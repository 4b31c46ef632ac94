"""The load-balancing loss of mixture-of-experts models."""

import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.errors import ConfigError

LOG = logging.getLogger(__name__)
REQUEST = "output_router_logits"
WEIGHT_NAMES = ("router_aux_loss_coef", "aux_loss_coef")


def router_request(
    causal_lm: PreTrainedModel, forward: Callable[..., Any], input_ids: Tensor | None
) -> dict[str, bool]:
    """What to call the model with for the loss of its routers; empty where its config asks for
    none. True where `forward`, the model's own, was seen to make one of `input_ids` [1, S], else
    False, with a warning.

    It is said in so many words because some families read the argument and not the config.
    """
    wanted = getattr(causal_lm.config.get_text_config(), REQUEST, False)
    parameters = inspect.signature(forward).parameters.values()
    takes_it = any(p.kind is p.VAR_KEYWORD or p.name == REQUEST for p in parameters)
    if not (wanted and takes_it) or input_ids is None:
        return {}
    why = "it makes none"
    try:
        with torch.no_grad():
            outputs = forward(input_ids=input_ids, use_cache=False, **{REQUEST: True})
        if isinstance(getattr(outputs, "aux_loss", None), Tensor):
            return {REQUEST: True}
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        why = f"making it raised {first_line(error)}"
    LOG.warning(
        f"axolotl-distill: `output_router_logits` asks {type(causal_lm).__name__} for a loss of "
        f"its routers, and {why}; none is added."
    )
    return {REQUEST: False}


def router_loss(causal_lm: PreTrainedModel, outputs: Any, attention_mask: Tensor | None) -> Tensor:
    """The loss of the routers whose logits are in a backbone's `outputs`, as the module of the
    model computes it; a scalar.

    Raises whatever comes of a family that does it in another way.
    """
    module = sys.modules[type(causal_lm).__module__]
    return module.load_balancing_loss_func(
        outputs.router_logits, causal_lm.num_experts, causal_lm.num_experts_per_tok, attention_mask
    )


def router_weight(causal_lm: PreTrainedModel) -> float:
    """What the model multiplies the routers' loss by. Raises ConfigError where it is not found."""
    for owner in (causal_lm, causal_lm.config.get_text_config()):
        for name in WEIGHT_NAMES:
            if getattr(owner, name, None) is not None:
                return float(getattr(owner, name))
    raise ConfigError(
        f"{type(causal_lm).__name__} has a loss for its routers, and neither it nor its config "
        f"says how much it weighs ({' or '.join(WEIGHT_NAMES)}). Set the weight, or "
        "`output_router_logits: false`, in the YAML's `overrides_of_model_config`."
    )


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
