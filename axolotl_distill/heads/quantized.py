"""Heads that bitsandbytes holds in 4 or 8 bits, as floats a few rows at a time."""

from typing import Any

import torch
from distill_kernels import TiledWeight
from torch import Tensor


def tiled_weight(module: Any) -> TiledWeight | None:
    """The dequantised weight of a bitsandbytes Linear, or None for any other module or layout.

    4 bit: a row must be whole blocks of the quantiser, so that rows can be cut out. 8 bit:
    activations stay floats here, which bitsandbytes quantises too; its own product is coarser.
    """
    name = type(module).__name__
    if name == "Linear4bit" and getattr(module.weight, "quant_state", None) is not None:
        return _four_bits(module.weight.data, module.weight.quant_state)
    if name == "Linear8bitLt":
        return _eight_bits(module)
    return None


def _four_bits(packed: Tensor, state: Any) -> TiledWeight | None:
    import bitsandbytes.functional as bnb

    rows, columns = state.shape
    if columns % state.blocksize or getattr(state, "packing_format_for_cpu", False):
        return None
    blocks = columns // state.blocksize
    packed_rows = packed.reshape(rows, -1)
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(absmax, state.state2) + state.offset
    absmax = absmax.float().reshape(rows, blocks)

    def tile(at: slice) -> Tensor:
        part = bnb.QuantState(
            absmax=absmax[at].reshape(-1),
            shape=torch.Size((at.stop - at.start, columns)),
            code=state.code,
            blocksize=state.blocksize,
            quant_type=state.quant_type,
            dtype=state.dtype,
        )
        return bnb.dequantize_4bit(packed_rows[at].reshape(-1, 1), part)

    return TiledWeight((rows, columns), state.dtype, tile)


def _eight_bits(module: Any) -> TiledWeight | None:
    # Until its first forward the module keeps the integers with the weight, then with its state.
    codes = module.state.CB if module.state.CB is not None else module.weight.CB
    scales = module.state.SCB if module.state.SCB is not None else module.weight.SCB
    if codes is None or scales is None:
        return None

    def tile(at: slice) -> Tensor:
        return codes[at].float() * (scales[at].float() / 127)[:, None]

    return TiledWeight(tuple(codes.shape), torch.float32, tile)
