"""What the layers of a model hand on, in a forward that is run anyway."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_distill.errors import ConfigError


def layers_of(model: PreTrainedModel, key: str = "distill.hidden_states") -> nn.ModuleList:
    """Its layers, in their order, for what `key` asks. Raises ConfigError where they are not in
    one list."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise ConfigError(
        f"A {type(model).__name__} does not have its {number} layers in one list, so that "
        f"`{key}` cannot be had from it. Remove the key."
    )


class LayerStates:
    """While the context lasts, keeps what some layers hand on. Layers may be named more than once;
    none at all cost nothing."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]):
        self.layers = layers
        stack = layers_of(model) if layers else ()
        self._modules = {layer: stack[layer] for layer in layers}
        self._training = model.training
        self._found: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for layer, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeper(layer)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeper(self, layer: int) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._found[layer] = output[0] if isinstance(output, tuple) else output

        return keep

    def at(self, rows: Tensor) -> Tensor | None:
        """[M, P, D] at rows int64 [M], positions as numbers in [0, B * S), for the P layers; None
        for none.

        Raises ConfigError where a gradient is wanted and would reach no layer.
        """
        if not self.layers:
            return None
        if torch.is_grad_enabled() and self._training:
            dead = [n for n in self.layers if not self._found[n].requires_grad]
            if dead:
                raise ConfigError(
                    f"`distill.hidden_states`: no gradient would reach layer {dead[0]} of the "
                    "student, for nothing up to it learns. Pair later layers."
                )
        return torch.stack([self._found[n].flatten(0, 1)[rows] for n in self.layers], dim=1)

    def of_row(self, row: int, positions: Tensor) -> Tensor | None:
        """[R, P, D] at positions int64 [R] of one row of the batch; None for no layers."""
        if not self.layers:
            return None
        at = [self._found[n][row] for n in self.layers]
        return torch.stack([state[positions.to(state.device)].to(at[0].device) for state in at], 1)
