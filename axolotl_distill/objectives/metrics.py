"""Running sums of the loss's parts, turned into per-token means when the trainer logs."""

import torch
from accelerate import Accelerator
from torch import Tensor

PER_TEACHER_TOKEN = ("kl", "teacher_mass", "top1_agreement")
PER_TOKEN = ("ce", "entropy")
NAMES = ("loss", "weight", *PER_TOKEN, *PER_TEACHER_TOKEN, "tokens", "teacher_tokens")


class MetricSums:
    """Adds up scalars on the device without a host sync; float64, so that order does not show."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, sums: dict[str, Tensor]) -> None:
        values = torch.stack([sums[name].detach().to(torch.float32) for name in NAMES])
        values = values.to(torch.float64) if values.device.type != "mps" else values
        self.total = values if self.total is None else self.total + values

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over every rank's supervised tokens since the last call; then starts anew.

        `loss` is per unit of the tokens' weights (their number where none is weighed); `ce` and
        `entropy` (the student's, at T) are per supervised token; `kl`, `teacher_mass` and
        `top1_agreement` per token that has a teacher. What there is none of to divide by is
        absent. Nats where they are nats.
        """
        if self.total is None:
            return {}
        total = dict(
            zip(NAMES, accelerator.reduce(self.total, reduction="sum").tolist(), strict=True)
        )
        self.total = None
        means = {}
        if total["tokens"] > 0:
            means = {name: total[name] / total["tokens"] for name in PER_TOKEN}
        if total["weight"] > 0:
            means["loss"] = total["loss"] / total["weight"]
        if total["teacher_tokens"] > 0:
            means |= {name: total[name] / total["teacher_tokens"] for name in PER_TEACHER_TOKEN}
        return means
