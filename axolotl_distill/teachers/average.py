"""The weights of a student, averaged over its steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from axolotl_distill.errors import ConfigError


class Average:
    """An exponential moving average of the weights of a model that learn.

    With d the decay and θ_n the weights after optimizer step n,

        a_0 = θ_0        a_n = d·a_{n−1} + (1 − d)·θ_n

    in fp32 whatever the weights' type, in which steps of 1 − d would be lost; the model runs with
    them in its own type. All other weights are the model's own.

    model  whose parameters with `requires_grad` learn; looked at by `begin`
    """

    def __init__(self, model: nn.Module, decay: float):
        assert 0 < decay < 1
        self.model, self.decay = model, decay
        self.weights: dict[str, Tensor] = {}

    def begin(self) -> None:
        """a_0, where nothing was loaded; what was is brought to where the weights are. Raises
        ConfigError where no weight learns, or one is not there as floats."""
        learning = self._learning()
        if not learning:
            raise ConfigError(
                "`distill.teacher.ema`: no weight of the student learns, so that there is nothing "
                "to average."
            )
        for name, weight in learning.items():
            if not weight.is_floating_point() or hasattr(weight, "full_tensor"):
                raise ConfigError(
                    f"`distill.teacher.ema`: `{name}` is {weight.dtype}, sharded or quantised, and "
                    "an average needs all of it as floats. Train a LoRA adapter, or in one process "
                    "or DDP without quantisation."
                )
        if not self.weights:
            self.weights = {
                name: weight.detach().to(torch.float32, copy=True)
                for name, weight in learning.items()
            }
        self.weights = {name: self.weights[name].to(learning[name].device) for name in learning}

    @torch.no_grad()
    def update(self) -> None:
        """From a_{n−1} to a_n, after step n."""
        learning = self._learning()
        for name, average in self.weights.items():
            average.lerp_(learning[name].detach().float(), 1 - self.decay)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """What `weights` was in another run. Raises ConfigError where it is another model's."""
        learning = self._learning()
        ours = {name: weight.shape for name, weight in learning.items()}
        theirs = {name: weight.shape for name, weight in weights.items()}
        if ours != theirs:
            unlike = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            raise ConfigError(
                f"The averaged weights of the checkpoint are of another student: {len(unlike)} "
                f"differ in name or shape, `{unlike[0]}` first. Train with the `adapter` and the "
                "modules of the checkpoint, or begin anew."
            )
        self.weights = {
            name: weight.to(learning[name].device, torch.float32)
            for name, weight in weights.items()
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts the model has these weights; then its own, as they were. Before `begin`
        they are the same."""
        learning = self._learning()
        own = {name: learning[name].data for name in self.weights}
        try:
            for name, average in self.weights.items():
                learning[name].data = average.to(own[name].dtype)
            yield
        finally:
            for name, data in own.items():
                learning[name].data = data

    def _learning(self) -> dict[str, nn.Parameter]:
        return {n: weight for n, weight in self.model.named_parameters() if weight.requires_grad}
