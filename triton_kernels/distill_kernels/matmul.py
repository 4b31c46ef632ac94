"""The products of the loss. Low-precision inputs, fp32 accumulation AND fp32 results: logits
rounded to bf16 before the softmax would dominate every other error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 8192


@dataclass(frozen=True)
class TiledWeight:
    """A frozen head [V, D] that is not held as floats, such as a quantised one.

    shape  (V, D)
    dtype  of what `tile` returns
    tile   rows start..stop of the head as floats, [stop - start, D]; called anew for every chunk
           of the loss, so that no more than TILE rows exist at once
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    tile: Callable[[slice], Tensor]
    requires_grad: bool = False


Weight = Tensor | TiledWeight


def project(hidden_CD: Tensor, weight_VD: Weight, out_CV: Tensor) -> None:
    """out = hidden @ weight.T, fp32 [C, V]; rows of `out` may lie further apart than V."""
    if isinstance(weight_VD, Tensor) and hidden_CD.dtype == weight_VD.dtype == torch.float32:
        torch.mm(hidden_CD, weight_VD.t(), out=out_CV)
    elif isinstance(weight_VD, Tensor) and hidden_CD.is_cuda and hidden_CD.dtype == weight_VD.dtype:
        torch.mm(hidden_CD, weight_VD.t(), out_dtype=torch.float32, out=out_CV)
    else:
        for at, tile in _tiles(weight_VD):
            out_CV[:, at] = _wide_product(hidden_CD, tile.t())


def back_to_hidden(grad_CV: Tensor, weight_VD: Weight) -> Tensor:
    """grad @ weight, fp32 [C, D].

    Not in grad's type: a sum over V ids may be split over many blocks of the device, and torch
    lets cuBLAS add the parts of a bf16 product in bf16.
    """
    if isinstance(weight_VD, Tensor) and (grad_CV.is_cuda or weight_VD.dtype == torch.float32):
        return _wide_product(grad_CV, weight_VD)
    grad_CD = grad_CV.new_zeros(grad_CV.shape[0], weight_VD.shape[1], dtype=torch.float32)
    for at, tile in _tiles(weight_VD):
        grad_CD += _wide_product(grad_CV[:, at], tile)
    return grad_CD


def add_to_weight(grad_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor, *, first: bool) -> None:
    """grad_weight (+)= grad.T @ hidden in fp32; the first chunk writes, the others add."""
    beta = 0 if first else 1
    if grad_CV.is_cuda and grad_CV.dtype != torch.float32:
        low_CD = hidden_CD.to(grad_CV.dtype)
        torch.addmm(grad_VD, grad_CV.t(), low_CD, out_dtype=torch.float32, beta=beta, out=grad_VD)
    else:
        grad_VD.addmm_(grad_CV.float().t(), hidden_CD.float(), beta=beta)


def _wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32; on CUDA, b is brought to a's type if that is a low one."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b.to(a.dtype), out_dtype=torch.float32)
    return a.float() @ b.float()


def _tiles(weight_VD: Weight) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the vocabulary, so that a weight is upcast piece by piece and never as a whole."""
    for start in range(0, weight_VD.shape[0], TILE):
        at = slice(start, min(start + TILE, weight_VD.shape[0]))
        yield at, weight_VD[at] if isinstance(weight_VD, Tensor) else weight_VD.tile(at)
