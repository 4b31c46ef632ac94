"""The student's adapter as files that a server reads, and one for trial."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from axolotl_distill.rollout.versions import Versions

SMALLEST, LARGEST = -10, 7
"""Exponents of two, of a trial adapter's weights."""


class Adapters(Versions):
    """Versions of an adapter, in PEFT's format."""

    def save(self, model: Any, name: str) -> str:
        """The adapter of PEFT's `model` as the folder `name`, whole from the moment it is there.
        Returns its path as the server has it. Raises OSError."""
        new = self.folder / f".{name}"
        model.save_pretrained(
            new, selected_adapters=[model.active_adapter], save_embedding_layers=False
        )
        return self.keep(new, name)


@contextmanager
def trial_adapter(model: Any, exponent: int) -> Iterator[None]:
    """While it lasts the second factor of every LoRA weight is normal with a standard deviation of
    2^exponent, always the same one; then as it was."""
    drawn = torch.Generator().manual_seed(0)
    own = [(name, p) for name, p in model.named_parameters() if ".lora_B." in name]
    with torch.no_grad():
        kept = [parameter.detach().clone() for _, parameter in own]
        for _, parameter in own:
            noise = torch.randn(parameter.shape, generator=drawn) * 2.0**exponent
            parameter.copy_(noise.to(parameter.dtype))
        try:
            yield
        finally:
            for (_, parameter), before in zip(own, kept, strict=True):
                parameter.copy_(before)
