"""Reading a store: O(shards) to open, O(batch) to read."""

from pathlib import Path

import numpy as np

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.store.checked import check_files
from axolotl_distill.store.manifest import AGAIN, Manifest
from axolotl_distill.store.payloads import Arrays, Records
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

    def read(self, index: np.ndarray) -> Records:
        """Records int64 [M], in any order, as often as wanted.

        Raises StoreError when an index is outside the store, and StoreCorruptError for a record
        that is no record; nothing larger than a batch of the longest records is allocated.
        """
        index = np.asarray(index, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.num_records):
            raise StoreError(
                f"records {index.min()} to {index.max()} asked of {self.path}, which holds "
                f"{self.num_records}"
            )
        shard_of = np.searchsorted(self._stops, index, side="right")
        parts = []
        for number in np.unique(shard_of).tolist() or [0]:
            at = np.flatnonzero(shard_of == number)
            local = index[at] - self.manifest.shards[number].first_record
            parts.append((at, self._read_shard(number, local)))
        return self.manifest.payloads.join(parts, index.size)

    def arrays(self, number: int) -> Arrays:
        """The memory-mapped arrays of one shard. Raises what map_tensors does."""
        if number not in self._maps:
            shard = self.manifest.shards[number]
            self._maps[number] = map_tensors(self.path / shard.records_file, self.manifest, shard)
        return self._maps[number]

    def _read_shard(self, number: int, local: np.ndarray) -> Records:
        shard = self.manifest.shards[number]
        arrays, shape = self.arrays(number), self.manifest.shape_of(shard)
        try:
            return self.manifest.payloads.read(arrays, local, shape)
        except ValueError as error:
            raise StoreCorruptError(
                f"{self.path / shard.records_file}: {error}; since it was last checked. {AGAIN}"
            ) from error


def open_store(
    path: str | Path, *, allow_incomplete: bool = False, check_again: bool = False
) -> TeacherStore:
    """Open a store for reading. Holds every file against the manifest; see `check_files`, which
    reads each file once and then remembers, unless `check_again`.

    Raises StoreMissingError, StoreCorruptError, or StoreError for a capture that has not ended.
    """
    path = Path(path)
    manifest = Manifest.load(path)
    if not manifest.complete and not allow_incomplete:
        raise StoreError(
            f"{path} is not complete: its capture stopped after {manifest.num_rows} rows. Run the "
            "same `axolotl distill capture` command again; it goes on where it stopped."
        )
    check_files(path, manifest, again=check_again)
    return TeacherStore(path, manifest)
