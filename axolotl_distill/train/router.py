"""The load-balancing loss of mixture-of-experts models."""

import sys
from typing import Any

from torch import Tensor, nn

from axolotl_distill.errors import ConfigError

WEIGHT_NAMES = ("router_aux_loss_coef", "aux_loss_coef")


def wants_router_loss(causal_lm: nn.Module) -> bool:
    """Whether the model's own forward would make its routers' logits and add their loss."""
    return bool(getattr(causal_lm.config.get_text_config(), "output_router_logits", False))


def router_loss(causal_lm: nn.Module, outputs: Any, attention_mask: Tensor | None) -> Tensor | None:
    """The loss of the routers whose logits are in a backbone's `outputs`, as the module of the
    model computes it; a scalar, or None where the model has no such loss.

    Raises whatever comes of a family that does it in another way.
    """
    router_logits = getattr(outputs, "router_logits", None)
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    if not router_logits or function is None:
        return None
    return function(
        router_logits, causal_lm.num_experts, causal_lm.num_experts_per_tok, attention_mask
    )


def router_weight(causal_lm: nn.Module) -> float:
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
