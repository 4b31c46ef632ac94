"""Weights that tensor parallelism holds in parts over the processes of a mesh."""

from typing import Any

from distill_kernels import VocabShard
from distill_kernels.shard import WHOLE
from torch import Tensor


def is_tensor_parallel(model: Any) -> bool:
    """Whether transformers split this model's layers over processes as it loaded them."""
    return (getattr(model, "_tp_size", None) or 1) > 1


def local(weight: Any) -> Any:
    """What this process holds of a weight, or None of None; its gradient flows back."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def shard_of(weight: Tensor) -> VocabShard:
    """Where the rows lie that this process holds of a head's weight [V, D].

    Raises ValueError where it is cut in any other way than by rows over one mesh.
    """
    placements: Any = getattr(weight, "placements", ())
    if all(placement.is_replicate() for placement in placements):
        return WHOLE
    if len(placements) != 1 or not placements[0].is_shard(0):
        raise ValueError(f"it lies as {placements}, and not cut by rows over one mesh")
    mesh: Any = weight.device_mesh  # type: ignore[attr-defined]
    # As torch.chunk cuts: all of one size, but for the last.
    size = -(-weight.shape[0] // mesh.size())
    return VocabShard(size * mesh.get_local_rank(), mesh.get_group())
