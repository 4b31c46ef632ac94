"""Reading a store: O(batch)."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.store.manifest import AGAIN, Manifest
from axolotl_distill.store.payloads import Arrays, Payloads, Records
from axolotl_distill.store.schema import RECORD_BITS
from axolotl_distill.store.tensors import map_tensors


def pointer_tag(pointers: np.ndarray) -> np.ndarray:
    """Which store a pointer (int64, not negative) belongs to."""
    return pointers >> RECORD_BITS


def pointer_record(pointers: np.ndarray) -> np.ndarray:
    """The record index of a pointer (int64, not negative) within its store."""
    return pointers & ((1 << RECORD_BITS) - 1)


class TeacherStore:
    """A committed store, opened for reading. Safe to fork and to pickle: files are mapped when
    first read, in the process that reads them."""

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._stops = np.cumsum([shard.records for shard in manifest.shards], dtype=np.int64)
        self._maps: dict[int, Arrays] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    def __str__(self) -> str:
        """Where it lies, as a message may say."""
        return str(self.path)

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def num_records(self) -> int:
        return int(self._stops[-1]) if self._stops.size else 0

    @property
    def parquet_files(self) -> list[Path]:
        """The rows, in order."""
        return [self.path / shard.rows_file for shard in self.manifest.shards]

    def shard_of(self, record: int) -> int:
        """The number of the shard that has a record."""
        return int(np.searchsorted(self._stops, record, side="right"))

    def read(self, index: np.ndarray, without: Collection[str] = ()) -> Records:
        """Records int64 [M], in any order, as often as wanted.

        without  kinds of payloads that are not read

        Raises StoreError when an index is outside the store, and StoreCorruptError for a record
        that is no record; nothing larger than a batch of the longest records is allocated.
        """
        index = np.asarray(index, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.num_records):
            raise StoreError(
                f"records {index.min()} to {index.max()} asked of {self}, which holds "
                f"{self.num_records}"
            )
        payloads = self.manifest.payloads.without(without)
        shard_of = np.searchsorted(self._stops, index, side="right")
        parts = []
        for number in np.unique(shard_of).tolist() or [0]:
            at = np.flatnonzero(shard_of == number)
            local = index[at] - self.manifest.shards[number].first_record
            parts.append((at, self._read_shard(number, local, payloads)))
        return payloads.join(parts, index.size)

    def arrays(self, number: int) -> Arrays:
        """The memory-mapped arrays of one shard, which may outlive its file. Raises what `held`
        does."""
        with self.held(number) as arrays:
            return arrays

    @contextmanager
    def held(self, number: int) -> Iterator[Arrays]:
        """The memory-mapped arrays of one shard, whose file stays until the context ends. Raises
        what map_tensors does."""
        if number not in self._maps:
            shard = self.manifest.shards[number]
            self._maps[number] = map_tensors(self.path / shard.records_file, self.manifest, shard)
        yield self._maps[number]

    def _read_shard(self, number: int, local: np.ndarray, payloads: Payloads) -> Records:
        shard = self.manifest.shards[number]
        try:
            with self.held(number) as arrays:
                return payloads.read(arrays, local, self.manifest.shape_of(shard))
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreCorruptError(
                f"{self}/{shard.records_file}: {error}; since it was last checked. {AGAIN}"
            ) from error
