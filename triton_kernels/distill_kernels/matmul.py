"""The three products of the loss. Low-precision inputs, fp32 accumulation AND fp32 results:
logits rounded to bf16 before the softmax would dominate every other error.
"""

import torch
from torch import Tensor

WEIGHT_TILE = 8192


def project(hidden_CD: Tensor, weight_VD: Tensor, out_CV: Tensor) -> None:
    """out = hidden @ weight.T, fp32 [C, V]."""
    if hidden_CD.dtype == weight_VD.dtype == torch.float32:
        torch.mm(hidden_CD, weight_VD.t(), out=out_CV)
    elif hidden_CD.is_cuda and hidden_CD.dtype == weight_VD.dtype:
        torch.mm(hidden_CD, weight_VD.t(), out_dtype=torch.float32, out=out_CV)
    else:
        hidden_CD = hidden_CD.float()
        for tile in _tiles(weight_VD):
            out_CV[:, tile] = hidden_CD @ weight_VD[tile].float().t()


def back_to_hidden(grad_CV: Tensor, weight_VD: Tensor) -> Tensor:
    """grad @ weight, [C, D]; fp32, or on CUDA the weight's type for tensor cores."""
    if weight_VD.dtype == torch.float32:
        return grad_CV @ weight_VD
    if grad_CV.is_cuda:
        return grad_CV.to(weight_VD.dtype) @ weight_VD
    grad_CD = grad_CV.new_zeros(grad_CV.shape[0], weight_VD.shape[1])
    for tile in _tiles(weight_VD):
        grad_CD.addmm_(grad_CV[:, tile], weight_VD[tile].float())
    return grad_CD


def add_to_weight(grad_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """grad_weight += grad.T @ hidden, accumulated in fp32 over all chunks."""
    if hidden_CD.dtype != torch.float32 and hidden_CD.is_cuda:
        low = grad_CV.to(hidden_CD.dtype)
        grad_VD += torch.mm(low.t(), hidden_CD, out_dtype=torch.float32)
    else:
        grad_VD.addmm_(grad_CV.t(), hidden_CD.float())


def _tiles(weight_VD: Tensor) -> list[slice]:
    """Vocabulary slices of a weight that is upcast piece by piece, never as a whole."""
    return [slice(at, at + WEIGHT_TILE) for at in range(0, weight_VD.shape[0], WEIGHT_TILE)]
