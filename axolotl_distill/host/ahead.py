"""Shards of stores at an address, fetched in the order in which the batches will ask for them."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from axolotl_distill.signal.batch import POINTERS
from axolotl_distill.store import RemoteStore, TeacherStore, pointer_record, pointer_tag

# Batches known before they are used, where their shards are few.
MOST = 4096
# Of the cache: what is fetched must still be there when it is asked for.
SHARE = 0.5

Shard = tuple[int, int]
"""The tag of a store, and the number of its shard"""


class Ahead:
    """A batch sampler, read ahead: the batches it gives are those of `batches`, in their order.

    It knows of as many as their shards fill this process's share of the cache, and tells the
    stores of each shard as it comes into sight. What else is asked of it, `batches` answers.

    dataset    whose rows have POINTERS        stores     by the tag of their pointers
    processes  that share the cache
    """

    def __init__(
        self, batches: Any, dataset: Any, stores: Mapping[int, TeacherStore], processes: int
    ):
        self._batches = batches
        self._stores = {tag: s for tag, s in stores.items() if isinstance(s, RemoteStore)}
        self._rows = dataset.select_columns([POINTERS.name]).with_format("numpy")
        smallest = min(store.cache.size for store in self._stores.values())
        self._room = SHARE * smallest / processes

    def __iter__(self) -> Iterator[Any]:
        waiting: deque[tuple[Any, set[Shard]]] = deque()
        in_sight: Counter[Shard] = Counter()
        held = 0
        batches = iter(self._batches)
        while True:
            while len(waiting) < MOST and (held < self._room or not waiting):
                batch = next(batches, None)
                if batch is None:
                    break
                shards = self._shards(batch)
                for shard in shards:
                    in_sight[shard] += 1
                    if in_sight[shard] == 1:
                        held += self._size(shard)
                        self._stores[shard[0]].expect(shard[1])
                waiting.append((batch, set(shards)))
            if not waiting:
                return
            batch, known = waiting.popleft()
            yield batch
            for shard in known:
                in_sight[shard] -= 1
                if in_sight[shard] == 0:
                    held -= self._size(shard)
                    # A run that is resumed passes by what it has learnt from.
                    self._stores[shard[0]].passed(shard[1])

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def sampler(self) -> Any:
        """That of the rows, however deep it lies: who tells it of an epoch looks no further."""
        found = self._batches
        while not hasattr(found, "sampler"):
            found = found.batch_sampler
        return found.sampler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def _shards(self, batch: Any) -> Sequence[Shard]:
        """Each once, in the order of the rows; a batch may have bins of rows."""
        rows = self._rows[list(_flat(batch))][POINTERS.name]
        # A merged dataset without the column has None.
        given = [np.asarray(row, np.int64) for row in rows if row is not None]
        first = np.array([row.max(initial=-1) for row in given], np.int64)
        first = first[first >= 0]
        found = []
        for tag, record in zip(pointer_tag(first), pointer_record(first), strict=True):
            if tag in self._stores:
                found.append((int(tag), self._stores[tag].shard_of(int(record))))
        return list(dict.fromkeys(found))

    def _size(self, shard: Shard) -> int:
        about = self._stores[shard[0]].manifest.shards[shard[1]]
        return about.files[about.records_file]["bytes"]


def look_ahead(
    loader: Any, dataset: Any, stores: Mapping[int, TeacherStore], processes: int
) -> None:
    """Have the batches of a DataLoader that stands read ahead, in place, where a store lies at an
    address and the rows can be looked at by number."""
    if (
        any(isinstance(store, RemoteStore) for store in stores.values())
        and getattr(loader, "batch_sampler", None) is not None
        and POINTERS.name in (getattr(dataset, "column_names", None) or ())
        and hasattr(dataset, "__len__")
    ):
        batches = Ahead(loader.batch_sampler, dataset, stores, processes)
        # torch lets nobody change it, for its own settings depend on it; they stay as they are.
        object.__setattr__(loader, "batch_sampler", batches)


def _flat(batch: Any) -> Iterator[int]:
    if isinstance(batch, list | tuple):
        return chain.from_iterable(map(_flat, batch))
    return iter((int(batch),))
