"""What some models do to their logits after the output head."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitTransform:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)

    Without a softcap: scale * (hidden @ weight.T + bias). Gemma 2 caps at 30, Cohere multiplies
    by `logit_scale`, Granite divides by `logits_scaling`.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.softcap is not None and not self.softcap > 0:
            raise ValueError(f"softcap={self.softcap}: expected None or a number above 0")

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.softcap is None

    def __call__(self, head_NV: Tensor) -> Tensor:
        scaled = head_NV * self.scale if self.scale != 1.0 else head_NV
        if self.softcap is None:
            return scaled
        return torch.tanh(scaled / self.softcap) * self.softcap

    def apply_(self, head_CV: Tensor) -> Tensor | None:
        """In place; returns d logits / d head where it varies (a softcap), else None."""
        if self.scale != 1.0:
            head_CV.mul_(self.scale)
        if self.softcap is None:
            return None
        head_CV.div_(self.softcap).tanh_()
        slope_CV = torch.square(head_CV).neg_().add_(1.0)
        head_CV.mul_(self.softcap)
        return slope_CV

    def backward_(self, grad_CV: Tensor, slope_CV: Tensor | None) -> None:
        """Turn d loss / d logits into d loss / d head, in place."""
        if slope_CV is not None:
            grad_CV.mul_(slope_CV)
        if self.scale != 1.0:
            grad_CV.mul_(self.scale)
