"""The student's adapter as files that a server reads, one version after another."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

OURS = "axolotl-distill-"
SMALLEST, LARGEST = -10, 7
"""Exponents of two, of a trial adapter's weights."""


class Adapters:
    """A folder of versions of one adapter, in PEFT's format. Nobody else's folder.

    there  what the server calls the folder
    """

    def __init__(self, folder: Path, there: str | None = None):
        self.folder, self.there = folder.absolute(), there
        # Another run, or this one begun anew, may have given the server a step of the same number.
        self.run = secrets.token_hex(4)

    def name(self, version: str) -> str:
        return f"{OURS}{self.run}-{version}"

    def save(self, model: Any, name: str) -> str:
        """The adapter of PEFT's `model` as the folder `name`, whole from the moment it is there.
        Returns its path as the server has it. Raises OSError."""
        new = self.folder / f".{name}"
        model.save_pretrained(
            new, selected_adapters=[model.active_adapter], save_embedding_layers=False
        )
        return self.keep(new, name)

    def keep(self, new: Path, name: str) -> str:
        """The folder `new` as `name`; readable for whomever the server runs as."""
        for file in new.iterdir():
            file.chmod(0o644)
        new.chmod(0o755)
        new.rename(self.folder / name)
        return f"{self.there.rstrip('/')}/{name}" if self.there else str(self.folder / name)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def others(self) -> list[str]:
        """Versions that killed runs left; what they had not finished is removed."""
        for unfinished in self.folder.glob(f".{OURS}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return sorted(path.name for path in self.folder.glob(f"{OURS}*"))


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
