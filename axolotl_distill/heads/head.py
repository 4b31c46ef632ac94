"""Whether a model's output head can be fused with the loss, and how its logits are made.

The fused loss needs hidden states, a weight and the exact function from one to the logits. Heads
come with biases, scales, soft-caps, adapters and quantised weights, and a model family may do
something nobody listed; so what the config says is tried against the model itself before it is
trusted, and a head that does not match is left to the model's own forward.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from distill_kernels import LogitTransform, LowRank, VocabShard
from distill_kernels.matmul import Weight
from distill_kernels.shard import WHOLE
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from axolotl_distill.heads.quantized import tiled_weight
from axolotl_distill.heads.router import REQUEST, first_line, router_loss
from axolotl_distill.heads.split import is_tensor_parallel, local, shard_of

PROBE_TOKENS = 8
"""Of one row; a row may be shorter."""
PROBE_LOGIT = 64.0

Valued = Callable[[Tensor], tuple[Tensor, Any]]
"""Of hidden states a tensor, with a gradient where a backward follows, and whatever else."""


@dataclass(frozen=True)
class FusedHead:
    """logits = transform(module(cast(hidden))), with `module` a Linear, quantised or not, or its
    LoRA, and `cast` the change of type, if any, that the model makes between backbone and head.

    split  tensor parallelism holds it in parts, of which `shard` is this process's
    """

    module: Any
    transform: LogitTransform
    dtype: torch.dtype | None = None
    split: bool = False

    def cast(self, hidden: Tensor) -> Tensor:
        return hidden if self.dtype is None else hidden.to(self.dtype)

    @property
    def base(self) -> nn.Linear:
        """The Linear below the adapter."""
        module: Any = self.module
        return module.base_layer if isinstance(self.module, LoraLayer) else module

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter adds to the Linear."""
        layer = self.module
        return isinstance(layer, LoraLayer) and not (layer.disable_adapters or layer.merged)

    @property
    def shard(self) -> VocabShard:
        """The ids that weight, bias and low rank are of; all where the head is not split."""
        return shard_of(self.base.weight) if self.split else WHOLE

    def weight(self) -> Weight:
        quantized = tiled_weight(self.base)
        if quantized is not None:
            return quantized
        return local(self.base.weight) if self.split else self.base.weight

    def bias(self) -> Tensor | None:
        return local(self.base.bias) if self.split else self.base.bias

    def low_rank(self, hidden_ND: Tensor) -> LowRank | None:
        """What the active adapters add, as one term; None when there is none."""
        if not self.is_adapted:
            return None
        layer: Any = self.module
        lefts, rights = [], []
        for name in layer.active_adapters:
            if name in layer.lora_A:
                down: Any = layer.lora_A[name]
                up: Any = layer.lora_B[name]
                x = layer.lora_dropout[name](hidden_ND.to(down.weight.dtype))
                lefts.append(down(x) * layer.scaling[name])
                rights.append(up.weight)
        return LowRank(torch.cat(lefts, -1), torch.cat(rights, -1)) if lefts else None

    def in_window(self, function: Valued, hidden: Tensor) -> tuple[Tensor, Any]:
        """function(hidden), run where a forward of the head would run.

        FSDP2 and ZeRO-3 gather a module's weights around its forward and reduce their gradients
        after it. When the head's weight is not whole here, the function takes the place of that
        forward, and of those of the parts inside, and their hooks stand around it. A head that is
        split is never gathered.
        """
        if self.split or not _is_partitioned(self.base.weight):
            return self.in_parts(function, hidden)
        return _as_forward_of(self.module, partial(self.in_parts, function), hidden)

    def in_parts(self, function: Valued, hidden: Tensor) -> tuple[Tensor, Any]:
        """As `in_window`, within a forward of the head itself: its parts may be gathered each by
        itself, and their weights are read without a call."""
        for part in self._parts():
            if not self.split and _is_partitioned(part.weight):
                function = partial(_as_forward_of, part, function)
        return function(hidden)

    def _parts(self) -> list[nn.Module]:
        """What lies within the head and has weights that are read: Axolotl makes the matrices of
        an adapter units of FSDP2 each, and ZeRO-3 every module."""
        layer = self.module
        if not isinstance(layer, LoraLayer):
            return []
        ups = [layer.lora_B[name] for name in layer.active_adapters if name in layer.lora_B]
        return [self.base, *ups]


def find_head(causal_lm: PreTrainedModel) -> nn.Module:
    """The output head that forward calls; PEFT's `modules_to_save` copy where there is one and
    adapters are on."""
    head = causal_lm.get_output_embeddings()
    if hasattr(head, "original_module") and head.disable_adapters:
        return head.original_module
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
    causal_lm: PreTrainedModel,
    forward: Callable[..., Any],
    input_ids: Tensor | None,
    request: dict[str, bool],
) -> tuple[FusedHead | None, str]:
    """(the head to fuse, "") or (None, why it cannot be fused).

    input_ids: int64 [1, PROBE_TOKENS] of any real batch; they are run through `forward`, the
    model's own, to see that head and routers do what is expected of them.
    request: what `router_request` returned

    Whatever goes wrong in the attempt is a reason, but for a lack of memory, which is raised.
    """
    try:
        return _plan(causal_lm, forward, input_ids, request)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        return None, f"the output head was tried and raised {first_line(error)}"


def _plan(
    causal_lm: PreTrainedModel,
    forward: Callable[..., Any],
    input_ids: Tensor | None,
    request: dict[str, bool],
) -> tuple[FusedHead | None, str]:
    if input_ids is None:
        return None, "the batch has no input_ids to try the output head with"
    if causal_lm.base_model is causal_lm:
        return None, f"{type(causal_lm).__name__} does not name its backbone"
    head = FusedHead(
        find_head(causal_lm),
        transform_from_config(causal_lm.config),
        split=is_tensor_parallel(causal_lm),
    )
    if isinstance(head.module, LoraLayer) and _is_exotic(head.module):
        return None, "the output head's adapter is more than a product of two matrices"
    if not isinstance(head.base, nn.Linear):
        return None, f"the output head is a {type(head.base).__name__}, not a Linear"
    stored = f"the output head's weight is stored as {head.base.weight.dtype}"
    if not _is_readable(head.base):
        return None, stored
    fused, why = _probe(causal_lm, forward, head, input_ids, request)
    # On a CPU, bitsandbytes packs a 4-bit weight anew when it is first used for inference.
    return (fused, why) if _is_readable(head.base) else (None, stored)


def _is_readable(base: nn.Linear) -> bool:
    return base.weight.is_floating_point() or tiled_weight(base) is not None


def _is_exotic(layer: LoraLayer) -> bool:
    """DoRA and other variants, a trained bias, or a kind of adapter without A and B."""
    names = layer.active_adapters
    return (
        any(name in layer.lora_variant for name in names)
        or any(name in layer.lora_B and layer.lora_B[name].bias is not None for name in names)
        or not layer.lora_A
    )


def _is_partitioned(weight: Any) -> bool:
    return hasattr(weight, "full_tensor") or hasattr(weight, "ds_id")


def _as_forward_of(module: nn.Module, function: Valued, hidden: Tensor) -> tuple[Tensor, Any]:
    """function(hidden) in place of the module's forward, with the hooks of the module around it."""
    kept: list[tuple[Tensor, Any]] = []

    def forward(hidden: Tensor) -> Tensor:
        kept.append(function(hidden))
        return kept[0][0]

    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        seen = module(hidden)
    finally:
        del module.forward
        if own is not None:
            module.forward = own
    value, rest = kept[0]
    if seen is not value:
        # In mixed precision FSDP2 makes bf16 of what a forward returns, so of the loss and of all
        # gradients. The hooks that gather for the backward are behind it, and need no more of it.
        value = value + 0 * seen
    return value, rest


@torch.no_grad()
def _probe(
    causal_lm: PreTrainedModel,
    forward: Callable[..., Any],
    head: FusedHead,
    input_ids: Tensor,
    request: dict[str, bool],
) -> tuple[FusedHead | None, str]:
    seen: dict[str, Any] = {}

    def keep_outputs(module: nn.Module, args: Any, output: Any) -> None:
        seen["backbone"] = output

    def amplify(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A soft-cap is invisible on small logits, so the head is fed a longer hidden state.
        seen["input"] = args[0]
        size = logits(args[0], LogitTransform()).abs().amax().clamp_min(1e-6)
        amplified = args[0] * (PROBE_LOGIT / size)
        seen["ours"] = logits(amplified, head.transform)
        return (amplified, *args[1:])

    def logits(hidden: Tensor, transform: LogitTransform) -> Tensor:
        made, _ = head.in_parts(lambda hidden: (_logits(head, hidden, transform), None), hidden)
        return made

    handles = [
        causal_lm.base_model.register_forward_hook(keep_outputs),
        head.module.register_forward_pre_hook(amplify),
    ]
    # An adapter's dropout would draw anew for each of the two products.
    dropout = getattr(head.module, "lora_dropout", nn.Identity())
    training = dropout.training
    dropout.eval()
    try:
        theirs = forward(input_ids=input_ids, use_cache=False, **request)
    finally:
        dropout.train(training)
        for handle in handles:
            handle.remove()

    if "input" not in seen or "backbone" not in seen:
        return None, "the model does not run its backbone and its head one after the other"
    head_input, hidden, given = seen["input"], seen["backbone"][0], theirs.logits
    if head_input.shape != hidden.shape:
        return None, "the model does not feed its head the backbone's last hidden state"
    # Some models lower the hidden state to the head's type, which is no change but this one.
    if not torch.allclose(head_input.float(), hidden.to(head_input.dtype).float()):
        return None, "the model changes the hidden state between backbone and head"
    error = (seen["ours"].float() - given.float()).abs().amax() / given.float().abs().amax()
    if not error <= _tolerance(head, given.dtype):
        return None, (
            "the model's logits are not the scale and soft-cap of its config "
            f"(relative error {error.item():.2g} on a probe)"
        )
    if request.get(REQUEST):
        ours = router_loss(causal_lm, seen["backbone"], None)
        if not torch.allclose(ours.float(), theirs.aux_loss.float(), rtol=1e-3):
            return None, "the loss of the model's routers is not computed as other models do"
    dtype = None if head_input.dtype == hidden.dtype else head_input.dtype
    return replace(head, dtype=dtype), ""


def _tolerance(head: FusedHead, dtype: torch.dtype) -> float:
    """Of a probe's logits, relative to the largest: what rounding explains and a fault does not."""
    if type(head.base).__name__ == "Linear8bitLt":
        return 0.05
    if torch.finfo(dtype).eps > 1e-5 or tiled_weight(head.base) is not None:
        return 4 * torch.finfo(torch.bfloat16).eps
    return 1e-4


def _logits(head: FusedHead, hidden: Tensor, transform: LogitTransform) -> Tensor:
    weight = head.weight()
    if not isinstance(weight, Tensor):
        weight = weight.tile(slice(0, weight.shape[0])).to(hidden.dtype)
    logits = F.linear(hidden, weight, head.bias())
    low_rank = head.low_rank(hidden)
    if low_rank is not None:
        logits = logits + (low_rank.left @ low_rank.right.t()).to(logits.dtype)
    if head.split:
        mine, (*sizes, width) = logits.flatten(0, -2), logits.shape
        extent = head.shard.extent(width, len(mine), mine.device)
        logits = head.shard.gather(mine, extent).view(*sizes, extent.whole)
    return transform(logits)
