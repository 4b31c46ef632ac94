"""Quantised heads as floats, a few rows at a time."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from axolotl_distill.heads.quantized import tiled_weight


def whole(weight) -> torch.Tensor:
    return torch.cat([weight.tile(slice(at, min(at + 70, 300))) for at in range(0, 300, 70)])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bits(kind, nested):
    head = bnb.nn.Linear4bit(128, 300, bias=False, quant_type=kind, compress_statistics=nested)
    head.load_state_dict({"weight": torch.randn(300, 128)})
    head = head.to("cpu")
    exact = bnb.functional.dequantize_4bit(head.weight.data, head.weight.quant_state)
    weight = tiled_weight(head)
    assert weight.shape == (300, 128)
    assert torch.equal(whole(weight), exact)


def test_eight_bits_before_and_after_the_first_forward():
    original = torch.randn(300, 128)
    head = bnb.nn.Linear8bitLt(128, 300, bias=False, has_fp16_weights=False)
    head.load_state_dict({"weight": original})
    head = head.to("cpu")
    before = whole(tiled_weight(head))
    # bitsandbytes rounds in half precision, so an entry may be off by more than half a step.
    step = original.abs().amax(1, keepdim=True) / 127
    assert ((before - original).abs() <= 0.75 * step).all()
    x = torch.randn(5, 128)
    output = head(x)
    assert torch.equal(whole(tiled_weight(head)), before)
    assert (output - x @ before.t()).norm() / output.norm() < 0.02


def test_rows_that_are_not_whole_blocks_are_left_alone():
    head = bnb.nn.Linear4bit(96, 300, bias=False, quant_type="nf4")
    head.load_state_dict({"weight": torch.randn(300, 96)})
    assert tiled_weight(head.to("cpu")) is None
    assert tiled_weight(nn.Linear(4, 4)) is None
