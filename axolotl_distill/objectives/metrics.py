"""Running sums of the loss's parts, turned into means when the trainer logs."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricSums:
    """Adds up scalars on the device without a host sync; float64, so that order does not show."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """By name a sum and what it is to be divided by; the same names in every call."""
        values = torch.stack(
            [value.detach().to(torch.float32) for pair in metrics.values() for value in pair]
        ).view(-1, 2)
        values = values.to(torch.float64) if values.device.type != "mps" else values
        self.names = list(metrics)
        self.total = values if self.total is None else self.total + values

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over every rank since the last call; then starts anew. What there is nothing of to
        divide by is absent."""
        if self.total is None:
            return {}
        total = accelerator.reduce(self.total, reduction="sum").tolist()
        self.total = None
        return {
            name: value / count
            for name, (value, count) in zip(self.names, total, strict=True)
            if count > 0
        }
