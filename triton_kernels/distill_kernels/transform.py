"""What some models do to their logits after the output head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)

    Without a softcap: scale * (hidden @ weight.T + bias). Gemma 2 caps at 30, Cohere multiplies
    by `logit_scale`, Granite divides by `logits_scaling`. Raises ValueError for a scale that is
    0 or not finite, and for a softcap that is not a finite number above 0.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale):
            raise ValueError(f"scale={self.scale}: expected a finite number other than 0")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise ValueError(f"softcap={self.softcap}: expected None or a finite number above 0")

    def __call__(self, head_NV: Tensor) -> Tensor:
        scaled = head_NV * self.scale if self.scale != 1.0 else head_NV
        if self.softcap is None:
            return scaled
        return torch.tanh(scaled / self.softcap) * self.softcap

    def apply_(self, head_CV: Tensor) -> None:
        """In place."""
        if self.scale != 1.0:
            head_CV.mul_(self.scale)
        if self.softcap is not None:
            head_CV.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits_CV: Tensor) -> Tensor | None:
        """d logits / d scaled head where it varies (a softcap), as a new tensor, else None."""
        if self.softcap is None:
            return None
        return logits_CV.div(self.softcap).square_().neg_().add_(1.0)

    def backward_(self, grad_CV: Tensor, slope_CV: Tensor | None) -> None:
        """Turn d loss / d logits into d loss / d head, in place."""
        if slope_CV is not None:
            grad_CV.mul_(slope_CV)
        if self.scale != 1.0:
            grad_CV.mul_(self.scale)
