"""What both kernels are launched with."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill_kernels.chunk import Chunk
from distill_kernels.divergences import resolve

BLOCK_V = 2048


def launch_options(hip: bool = torch.version.hip is not None) -> dict[str, int]:
    """Left alone, ptxas holds some variants to 40 registers and spills. ROCm knows no such cap."""
    return {"num_warps": 8} if hip else {"num_warps": 8, "maxnreg": 128}


def arguments(chunk: Chunk, grad_CV: Tensor, out_5C: Tensor) -> dict[str, Any]:
    """The arguments that both kernels have, by name.

    What is swept is a buffer's width, a multiple of 16 whatever the vocabulary is, so that loads
    are wide.
    """
    logits_CV, bias_V, scale_C = chunk.logits_CV, chunk.bias_V, chunk.scale_C
    spec, transform = chunk.spec, chunk.transform
    num_rows, vocab_size = logits_CV.shape
    width = logits_CV.stride(0)
    none = absent(chunk)
    name, mix = resolve(spec)
    return {
        "z_ptr": logits_CV,
        "z_stride": width,
        "grad_ptr": grad_CV,
        "grad_stride": grad_CV.stride(0),
        "bias_ptr": none if bias_V is None else F.pad(bias_V.float(), (0, width - vocab_size)),
        "label_ptr": chunk.labels_C.contiguous(),
        "scale_ptr": none if scale_C is None else scale_C.contiguous(),
        "out_ptr": out_5C,
        "num_rows": num_rows,
        "V": vocab_size,
        "width": width,
        "temperature": float(spec.temperature),
        "alpha": float(spec.alpha),
        "mix": float(mix),
        "keep": 1.0 - mix,
        "smoothing": float(spec.label_smoothing),
        "scale": float(transform.scale),
        "softcap": float(transform.softcap or 0.0),
        "DIVERGENCE": name,
        "TEMPERED": spec.temperature != 1.0,
        "SMOOTH": spec.label_smoothing > 0,
        "HAS_BIAS": bias_V is not None,
        "SCALED": transform.scale != 1.0,
        "CAPPED": transform.softcap is not None,
        "WITH_GRAD": scale_C is not None,
        "BLOCK_V": BLOCK_V,
        **launch_options(),
    }


def absent(chunk: Chunk) -> Tensor:
    """A tensor for an argument that is not read."""
    return torch.zeros(1, device=chunk.logits_CV.device)
