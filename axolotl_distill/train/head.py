"""Whether a model's output head can be fused with the loss, and how its logits are made.

The fused loss needs hidden states, a weight and the exact function from one to the logits. Heads
come with biases, scales, soft-caps, adapters and quantised weights, and a model family may do
something nobody listed; so what the config says is tried against the model itself before it is
trusted, and a head that does not match is left to the model's own forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from distill_kernels import LogitTransform
from torch import Tensor, nn
from torch.nn import functional as F

PROBE_TOKENS = 8
PROBE_LOGIT = 64.0


@dataclass(frozen=True)
class FusedHead:
    """logits = transform(hidden @ weight.T + bias), with the module that owns the tensors."""

    module: nn.Linear
    transform: LogitTransform


def find_head(causal_lm: nn.Module) -> nn.Module:
    """The output head that forward calls; PEFT's `modules_to_save` copy where there is one."""
    head = causal_lm.get_output_embeddings()
    copies = getattr(head, "modules_to_save", None)
    active = getattr(head, "active_adapter", None)
    if copies is not None and isinstance(active, str) and active in copies:
        return copies[active]
    return head


def transform_from_config(config: Any) -> LogitTransform:
    """Scale and soft-cap that the Hugging Face config names (Cohere, Granite, Gemma families)."""
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(
        scale=float(scale), softcap=getattr(config, "final_logit_softcapping", None)
    )


def plan_head(
    causal_lm: nn.Module, forward: Callable[..., Any], input_ids: Tensor
) -> tuple[FusedHead | None, str]:
    """(the head to fuse, "") or (None, why it cannot be fused).

    input_ids: int64 [B, S], any real batch; a few of its tokens are run through `forward`, the
    model's own, to see that the head does what `transform_from_config` says it does.
    """
    head = find_head(causal_lm)
    if type(head) is not nn.Linear:
        return None, f"the output head is a {type(head).__name__}, not a plain Linear"
    if not head.weight.is_floating_point():
        return None, f"the output head's weight is stored as {head.weight.dtype}"
    fused = FusedHead(head, transform_from_config(causal_lm.config))
    return _probe(causal_lm, forward, fused, input_ids[:1, :PROBE_TOKENS])


@torch.no_grad()
def _probe(
    causal_lm: nn.Module, forward: Callable[..., Any], fused: FusedHead, input_ids: Tensor
) -> tuple[FusedHead | None, str]:
    seen: dict[str, Tensor] = {}

    def keep_hidden(module: nn.Module, args: Any, output: Any) -> None:
        seen["hidden"] = output[0]

    def amplify(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A soft-cap is invisible on small logits, so the head is fed a longer hidden state.
        seen["input"] = args[0]
        size = F.linear(args[0], module.weight, module.bias).abs().amax().clamp_min(1e-6)
        seen["amplified"] = args[0] * (PROBE_LOGIT / size)
        return (seen["amplified"], *args[1:])

    handles = [
        causal_lm.base_model.register_forward_hook(keep_hidden),
        fused.module.register_forward_pre_hook(amplify),
    ]
    try:
        theirs = forward(input_ids=input_ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()

    if "input" not in seen or seen["input"].shape != seen["hidden"].shape:
        return None, "the model does not feed its head the backbone's last hidden state"
    if not torch.allclose(seen["input"], seen["hidden"]):
        return None, "the model changes the hidden state between backbone and head"
    ours = fused.transform(F.linear(seen["amplified"], fused.module.weight, fused.module.bias))
    error = (ours.float() - theirs.float()).abs().amax() / theirs.float().abs().amax()
    coarse = torch.finfo(theirs.dtype).eps > 1e-5
    if not error <= (4 * torch.finfo(torch.bfloat16).eps if coarse else 1e-4):
        return None, (
            "the model's logits are not the scale and soft-cap of its config "
            f"(relative error {error.item():.2g} on a probe)"
        )
    return fused, ""
