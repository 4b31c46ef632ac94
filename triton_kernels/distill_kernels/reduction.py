"""How rows become one number: their weights, and what their sum is divided by."""

import torch
from torch import Tensor

from distill_kernels.spec import IGNORE


def weighted(values_N: Tensor, weight_N: Tensor) -> Tensor:
    """weight * values; what counts for nothing adds nothing, even where it is infinite."""
    return weight_N * values_N.masked_fill(weight_N == 0, 0.0)


def row_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """fp32 or wider [N]; 0 in rows without a label."""
    wide = torch.promote_types(weights.dtype, torch.float32)
    return weights.to(wide).masked_fill(labels == IGNORE, 0.0)


def denominator(labels: Tensor, weights: Tensor | None) -> Tensor:
    """What reduction "mean" divides by: the weight of the rows with a label; 1 where that is 0."""
    if weights is None:
        return (labels != IGNORE).sum().clamp_min(1)
    total = row_weights(labels, weights).sum()
    return torch.where(total > 0, total, 1.0)
