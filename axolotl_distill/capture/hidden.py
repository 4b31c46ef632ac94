"""From what layers of a teacher hand on to the columns of a store (`store/payloads/hidden.py`)."""

import numpy as np
import torch
from torch import Tensor

from axolotl_distill.errors import CaptureError
from axolotl_distill.store.payloads.hidden import HiddenType

# Of a smaller one fp32 loses digits, and 1 / scale may not be had.
SMALLEST = torch.finfo(torch.float32).tiny


def hidden_columns(layers_RPD: Tensor, dtype: HiddenType, row: int) -> dict[str, np.ndarray]:
    """`hidden` [R, P, D] and `hidden_scale` fp32 [R, P] of outputs in any type, on any device.

    Raises CaptureError, naming the row of the source, for an output that is not finite.
    """
    x = layers_RPD.detach().float()
    largest = x.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise CaptureError(
            f"A layer of the teacher gave a hidden state that is not finite for row {row}. Capture "
            "with `distill.capture.teacher.dtype: float32`, or look at that row."
        )
    if dtype == "int8":
        scale = largest / 127
    else:
        # The largest number, m · 2^e with m in [½, 1), is stored as m · 2^15.
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 15)
        scale = scale.masked_fill(largest == 0, 0.0)
    scale = scale.masked_fill(scale < SMALLEST, 0.0)
    stored = torch.where(scale[..., None] > 0, x / scale[..., None], 0.0)
    stored = stored.round().to(torch.int8) if dtype == "int8" else stored.half()
    return {"hidden": stored.cpu().numpy(), "hidden_scale": scale.cpu().numpy()}
