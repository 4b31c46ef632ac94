"""A head whose vocabulary lies split over the processes of a tensor-parallel group."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extent:
    """The (start, size) of every member's shard, by its rank in the group."""

    spans: tuple[tuple[int, int], ...]

    @property
    def whole(self) -> int:
        """Ids in the whole vocabulary."""
        return sum(size for _, size in self.spans)

    @property
    def widest(self) -> int:
        """Ids in the widest shard. Whoever cuts rows into chunks does so by it: the members reduce
        chunk by chunk, and must make the same ones."""
        return max(size for _, size in self.spans)


@dataclass(frozen=True)
class VocabShard:
    """This process holds the ids start .. start + V_local - 1 of the vocabulary.

    group  torch.distributed process group; every member calls with its own shard, the same rows,
           labels and weights, and the same SparseTeacher, whose ids are those of the whole
           vocabulary. Of a dense teacher it gives the part over its own ids: logits[:, start:stop],
           or weight[start:stop] and bias[start:stop]. None = the head is whole.

    Shards may differ in size. Together they hold every id from 0 on once.

    Row sums (log-sum-exp, divergence, cross-entropy) are reduced over the group, so that every
    member gets the loss of the whole vocabulary, the gradient of its own shard of the weight, and
    the whole gradient of `hidden` (summed over the group, as a column-parallel Linear would).
    """

    start: int = 0
    group: Any = None

    @property
    def members(self) -> int:
        """Processes that have a part of the head."""
        if self.group is None:
            return 1
        import torch.distributed as dist

        return dist.get_world_size(self.group)

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

    def extent(
        self, size: int, num_rows: int, device: torch.device, teacher_size: int | None = None
    ) -> Extent:
        """Of the group, from the `size` ids that are here.

        num_rows      rows of this call
        device        one that the group serves
        teacher_size  ids of a dense teacher that are given here

        Raises ValueError, on every member, where their shards do not make one vocabulary, or where
        their rows or their parts of a dense teacher do not go together.
        """
        if self.group is None:
            return Extent(((self.start, size),))
        import torch.distributed as dist

        own = torch.tensor(
            [self.start, size, num_rows, -1 if teacher_size is None else teacher_size],
            device=device,
        )
        found = [torch.empty_like(own) for _ in range(self.members)]
        dist.all_gather(found, own, group=self.group)
        members = [tuple(member.tolist()) for member in found]
        _check_members(sorted(members))
        return Extent(tuple(member[:2] for member in members))

    def gather(self, values_NV: Tensor, extent: Extent) -> Tensor:
        """[N, whole] in the order of ids, of [N, V_local]; every member gets the gradient of its
        own part, as it is there: the members' losses are one and the same."""
        if self.group is None:
            return values_NV
        return _Gathered.apply(values_NV, self, extent)

    def summed_backward(self, values: Tensor) -> Tensor:
        """`values`, whose gradient is summed over the group."""
        return values if self.group is None else _SummedBackward.apply(values, self)

    def _reduce(self, values: Tensor, operation: str) -> Tensor:
        if self.group is None:
            return values
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values, getattr(dist.ReduceOp, operation), group=self.group)
        return values


WHOLE = VocabShard()


def _check_members(members: list[tuple[int, ...]]) -> None:
    """Of (start, size, rows, the teacher's size or -1) in the order of ids; see `extent`."""
    starts, sizes, rows, teachers = zip(*members, strict=True)
    held = ", ".join(f"{a}..{a + n - 1}" if n else "none" for a, n, *_ in members)
    stops = [0, *(a + n for a, n, *_ in members)]
    if 0 in sizes or any(a != b for a, b in zip(starts, stops, strict=False)):
        raise ValueError(
            f"the shards of the group hold the ids {held}: expected every id from 0 on once, and "
            "some in every shard; give each member's VocabShard its own `start`"
        )
    if len(set(rows)) > 1:
        raise ValueError(
            f"the members of the shard's group have {', '.join(map(str, rows))} rows: expected the "
            "same ones; what is cut over a group is the vocabulary, not the batch"
        )
    if set(teachers) == {-1}:
        return
    # A teacher may have more ids than the student, which are the last one's, or end before it does.
    fits = [t == n for t, n in zip(teachers, sizes, strict=True)]
    ends = fits.index(False) if False in fits else len(fits) - 1
    if (teachers[ends] > sizes[ends] and ends < len(fits) - 1) or any(teachers[ends + 1 :]):
        raise ValueError(
            f"the members of the shard's group hold {held}, and of a dense teacher "
            f"{', '.join(map(str, teachers))} ids: expected each one's part over its own ids, "
            "logits[:, start:stop] or weight[start:stop]"
        )


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_NV: Tensor, shard: VocabShard, extent: Extent) -> Tensor:
        import torch.distributed as dist

        num_rows, size = values_NV.shape
        padded = values_NV.new_zeros(num_rows, extent.widest)
        padded[:, :size] = values_NV
        parts = [torch.empty_like(padded) for _ in extent.spans]
        dist.all_gather(parts, padded, group=shard.group)
        ctx.mine = slice(shard.start, shard.start + size)
        by_start = sorted(zip(extent.spans, parts, strict=True), key=lambda found: found[0])
        return torch.cat([part[:, :held] for (_, held), part in by_start], 1)

    @staticmethod
    def backward(ctx: Any, grad_NW: Tensor) -> tuple[Tensor, None, None]:
        return grad_NW[:, ctx.mine], None, None


class _SummedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: VocabShard) -> Tensor:
        ctx.shard = shard
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.sum(grad.contiguous()), None
