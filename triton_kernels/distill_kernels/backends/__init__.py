"""Three ways to compute the loss, one meaning. None of them knows another."""

import os
import warnings
from typing import Literal, get_args

from distill_kernels.backends import torch_rows
from distill_kernels.chunk import RowBackend
from distill_kernels.matmul import TiledWeight
from distill_kernels.task import Inputs, Task

Backend = Literal["auto", "reference", "torch", "triton"]


def choose(inputs: Inputs, task: Task) -> str:
    """The backend for what the task asks for; "auto" is one of the other three.

    Raises ValueError where the one asked for cannot do what is asked.
    """
    backend, device, shard = task.backend, inputs.hidden.device, task.shard
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}: expected auto, reference, torch or triton")
    sharded = shard.group is not None
    if sharded and backend == "triton":
        raise ValueError(
            "backend='triton' cannot reduce over a shard's group: its kernels need a row's whole "
            "vocabulary; use torch"
        )
    if backend == "reference" and isinstance(inputs.weight, TiledWeight):
        raise ValueError("backend='reference' needs the weight as floats; use torch or triton")
    if backend == "auto":
        if device.type != "cuda" or sharded:
            return "torch"
        missing = _missing_triton()
        if missing:
            warnings.warn(
                f"distill_kernels: {missing} The torch backend is used instead; it is slower.",
                stacklevel=3,
            )
        return "torch" if missing else "triton"
    if backend == "triton":
        missing = _missing_triton()
        if missing:
            raise ValueError(f"backend='triton': {missing} Or use backend='torch'.")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"backend='triton' on {device.type}: it needs a CUDA device, or the interpreter "
                "(TRITON_INTERPRET=1 before triton is imported). Use backend='torch' here."
            )
    return backend


def row_backend(name: str) -> RowBackend:
    """ "torch" or "triton"; "reference" has whole logits and no chunks."""
    if name == "triton":
        from distill_kernels.backends import triton_rows

        return triton_rows
    return torch_rows


def _missing_triton() -> str:
    """Why Triton cannot be used and what to do; empty where it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return (
            f"the package triton cannot be imported ({error}): "
            "pip install 'axolotl-distill[triton]' (Linux)."
        )
    return ""
