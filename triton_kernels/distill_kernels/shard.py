"""A head whose vocabulary lies split over the processes of a tensor-parallel group."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """This process holds the ids start .. start + V_local - 1 of the vocabulary.

    group  torch.distributed process group; every member has the same rows and teacher, and calls
           with its own shard. None = the head is whole.

    Row sums (log-sum-exp, divergence, cross-entropy) are reduced over the group, so that every
    member gets the loss of the whole vocabulary, the gradient of its own shard of the weight, and
    the whole gradient of `hidden` (summed over the group, as a column-parallel Linear would).
    """

    start: int = 0
    group: Any = None

    def local(self, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """(index into this shard of `size` ids, whether the id is here); an id elsewhere has 0."""
        index = ids - self.start
        here = (ids >= 0) & (index >= 0) & (index < size)
        return torch.where(here, index, 0), here

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, "SUM")

    def max(self, values: Tensor) -> Tensor:
        return self._reduce(values, "MAX")

    def argmax(self, best: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(largest over the group, its id in the whole vocabulary; the lowest of equal ones)."""
        top = self.max(best)
        ids = torch.where(best == top, index + self.start, torch.iinfo(torch.int64).max)
        return top, self._reduce(ids, "MIN")

    def whole_size(self, size: int, device: torch.device) -> int:
        """Ids in the whole vocabulary, from those that are here; device: one the group serves."""
        if self.group is None:
            return size
        return int(self.sum(torch.tensor(size, device=device)).item())

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.group is None:
            return values
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values, getattr(dist.ReduceOp, operation), group=self.group)
        return values


WHOLE = VocabShard()
