"""All of a student's weights as files that a server reads, and such for trial."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from axolotl_distill.rollout.versions import Versions

SMALLEST, LARGEST = -8, 3
"""Exponents of two, of the noise on trial weights, relative to each tensor's size."""
UNIT = 0.02
"""Stands for the size of a tensor that is all zeros."""


class Checkpoints(Versions):
    """Versions of a whole model, as transformers saves it."""

    def save(self, model: Any, name: str) -> str:
        """The weights of `model` as the folder `name`, whole from the moment it is there. Returns
        its path as the server has it. Raises OSError."""
        new = self.folder / f".{name}"
        model.save_pretrained(new)
        return self.keep(new, name)


@contextmanager
def trial_weights(model: Any, exponent: int) -> Iterator[None]:
    """While it lasts every weight w has become w + 2^exponent * rms(w) * z, with z normal and
    always the same; then as it was, to the last bit. Takes the room of the weights, on the CPU."""
    drawn = torch.Generator().manual_seed(0)
    own = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    with torch.no_grad():
        kept = [parameter.detach().to("cpu", copy=True) for parameter in own]
        try:
            for parameter in own:
                size = parameter.float().pow(2).mean().sqrt().item() or UNIT
                noise = torch.randn(parameter.shape, generator=drawn) * (size * 2.0**exponent)
                parameter.add_(noise.to(parameter.device, parameter.dtype))
            yield
        finally:
            for parameter, before in zip(own, kept, strict=True):
                parameter.copy_(before)
