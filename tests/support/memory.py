"""What a call holds, by the tensors that its operations return."""

from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Held(TorchDispatchMode):
    """Peak of the bytes held at once, and the largest storage, of those made within.

    What an operation holds within itself is not seen.
    """

    def __init__(self, *known: torch.Tensor | None):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in known if x is not None}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known:
                storage = x.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                self.largest = max(self.largest, storage.nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return out


def held(call: Callable[[], object], *known: torch.Tensor | None) -> tuple[int, int]:
    """(peak, largest) in bytes of what a call makes; `known` are its inputs."""
    with Held(*known) as seen:
        call()
    return seen.peak, seen.largest
