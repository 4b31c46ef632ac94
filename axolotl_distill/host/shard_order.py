"""Rows in random order, few shards at a time: for stores at an address that do not fit the cache.

Shards come in random order, `window` of them at a time, and the rows of a window are shuffled. So a
shard is fetched once an epoch, and a batch is made of the rows of `window` shards and not of all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from axolotl.utils.logging import get_logger
from torch.utils.data import Sampler
from tqdm import tqdm

from axolotl_distill.errors import ConfigError
from axolotl_distill.signal.batch import POINTERS
from axolotl_distill.store import RemoteStore, TeacherStore, pointer_record, pointer_tag

LOG = get_logger(__name__)
ROWS = 1000
SHOWN_AFTER = 3.0
# The window that is read, the one that is fetched ahead, and the one before, which goes as late.
WINDOWS = 3


class ShardOrder(Sampler[int]):
    """The numbers of all rows, each once an epoch; see above. It depends on the rows, `seed` and
    the epoch alone: all ranks have the same, and so has a run that is resumed.

    shards  int64 [rows], the number of each row's shard; -1: none elsewhere, spread over all
    window  shards at a time
    """

    def __init__(self, shards: np.ndarray, window: int, seed: int):
        self.shards, self.window, self.seed = shards, window, seed
        self.epoch = 0
        self._packed: Any = None

    @property
    def window_rows(self) -> int:
        """Rows of a window, on average and at least one."""
        windows = -(-len(np.unique(self.shards[self.shards >= 0])) // self.window)
        return max(1, len(self.shards) // max(1, windows))

    def set_epoch(self, epoch: int) -> None:
        """The Trainer tells it before each."""
        if epoch != self.epoch and self._packed is not None:
            # It keeps its bins, and is told of no epoch where there are several ranks.
            self._packed._batches = None
        self.epoch = epoch

    def packed_by(self, batches: Any) -> Any:
        """Axolotl's packing sampler over this one, which is to pack anew in each epoch."""
        self._packed = batches
        return batches

    def order(self, epoch: int) -> np.ndarray:
        """int64 [rows]"""
        rng = np.random.default_rng([self.seed, epoch])
        placed = self.shards >= 0
        names, number = np.unique(self.shards[placed], return_inverse=True)
        windows = np.zeros(len(self.shards), np.int64)
        windows[placed] = (rng.permutation(len(names)) // self.window)[number]
        if placed.any():
            # As many beside each window as it has rows.
            windows[~placed] = rng.choice(windows[placed], (~placed).sum())
        return np.lexsort((rng.random(len(windows)), windows))

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def __len__(self) -> int:
        return len(self.shards)


def shard_order(
    dataset: Any, stores: Mapping[int, TeacherStore], window: int, seed: int
) -> ShardOrder:
    """Of a dataset whose rows have POINTERS. Reads them once.

    Raises ConfigError where the cache has no room for three windows.
    """
    far = {tag: store for tag, store in stores.items() if isinstance(store, RemoteStore)}
    sizes = sorted(
        shard.files[shard.records_file]["bytes"]
        for store in far.values()
        for shard in store.manifest.shards
    )
    room, wanted = min(store.cache.size for store in far.values()), sum(sizes[-WINDOWS * window :])
    if wanted > room:
        raise ConfigError(
            f"`distill.cache.window: {window}`: {WINDOWS} windows, the one that is read and "
            f"those before and after it, have up to {wanted:,} bytes, and the cache may hold "
            f"{room:,}. Lower `window`, raise `distill.cache.size`, or make smaller shards: "
            "`axolotl distill store reshard`."
        )
    made = ShardOrder(_shards(dataset, far), window, seed)
    LOG.info(
        f"axolotl-distill: {len(sizes)} shards in random order, {window} at a time, "
        f"{made.window_rows} rows or so among which a batch is drawn"
    )
    return made


def _shards(dataset: Any, stores: Mapping[int, TeacherStore]) -> np.ndarray:
    first, total = {}, 0
    for tag, store in stores.items():
        first[tag] = total
        total += len(store.manifest.shards)
    rows = dataset.select_columns([POINTERS.name]).with_format("numpy")
    found = np.full(len(dataset), -1, np.int64)
    steps = range(0, len(dataset), ROWS)
    for start in tqdm(steps, desc="shards of the rows", delay=SHOWN_AFTER, leave=False):
        for place, row in enumerate(rows[start : start + ROWS][POINTERS.name], start):
            # A merged dataset without the column has None.
            pointer = np.asarray([] if row is None else row, np.int64).max(
                initial=-1, keepdims=True
            )
            tag = int(pointer_tag(pointer)[0]) if pointer[0] >= 0 else -1
            if tag in stores:
                found[place] = first[tag] + stores[tag].shard_of(int(pointer_record(pointer)[0]))
    return found
