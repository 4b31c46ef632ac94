"""Reading a store: O(shards) to open, O(batch) to read."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store.encoding import PAD
from axolotl_distill.store.manifest import RECORD_BITS, Manifest, Shard

DTYPES = {"U32": np.dtype("<u4"), "I16": np.dtype("<i2")}


@dataclass(frozen=True)
class Records:
    """entries uint32 [M, K], PAD where a record is shorter; tail int16 [M, temperatures];
    entropy int16 [M], or None when the store holds no draws."""

    entries: np.ndarray
    tail: np.ndarray
    entropy: np.ndarray | None


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
        self._maps: dict[int, dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    @property
    def num_rows(self) -> int:
        return self.manifest.num_rows

    @property
    def num_records(self) -> int:
        return self.manifest.num_records

    @property
    def parquet_files(self) -> list[Path]:
        """The rows, in order."""
        return [self.path / "data" / f"{shard.name}.parquet" for shard in self.manifest.shards]

    def read(self, index: np.ndarray) -> Records:
        """Records int64 [M], in any order, as often as wanted.

        Raises StoreError when an index is outside the store.
        """
        index = np.asarray(index, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.num_records):
            raise StoreError(
                f"records {index.min()} to {index.max()} asked of {self.path}, which holds "
                f"{self.num_records}"
            )
        shard_of = np.searchsorted(self._stops, index, side="right")
        parts = []
        for number in np.unique(shard_of).tolist():
            at = np.flatnonzero(shard_of == number)
            local = index[at] - self.manifest.shards[number].first_record
            parts.append((at, self._read_shard(number, local)))
        if len(parts) == 1:
            return parts[0][1]

        width = max((part.entries.shape[1] for _, part in parts), default=1)
        entries = np.full((index.size, width), PAD, dtype=np.uint32)
        tail = np.empty((index.size, len(self.manifest.temperatures)), dtype=np.int16)
        has_entropy = self.manifest.method["kind"] == "sampled"
        entropy = np.zeros(index.size, dtype=np.int16) if has_entropy else None
        for at, part in parts:
            entries[at, : part.entries.shape[1]] = part.entries
            tail[at] = part.tail
            if entropy is not None:
                entropy[at] = part.entropy
        return Records(entries, tail, entropy)

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """The memory-mapped arrays of one shard."""
        if number not in self._maps:
            shard = self.manifest.shards[number]
            self._maps[number] = map_safetensors(teacher_file(self.path, shard))
        return self._maps[number]

    def _read_shard(self, number: int, local: np.ndarray) -> Records:
        arrays = self.arrays(number)
        entropy = arrays["entropy"][local] if "entropy" in arrays else None
        tail = arrays["tail"][local]
        offsets = arrays.get("offsets")
        if offsets is None:
            stride = int(self.manifest.method["k"])
            return Records(arrays["entries"].reshape(-1, stride)[local], tail, entropy)
        start = offsets[local].astype(np.int64)
        lengths = offsets[local + 1].astype(np.int64) - start
        column = np.arange(max(int(lengths.max(initial=0)), 1))
        inside = column < lengths[:, None]
        entries = np.full(inside.shape, PAD, dtype=np.uint32)
        entries[inside] = arrays["entries"][(start[:, None] + column)[inside]]
        return Records(entries, tail, entropy)


def open_store(path: str | Path, *, allow_incomplete: bool = False) -> TeacherStore:
    """Open a store for reading. Checks that the files which the manifest names are there, whole.

    Raises StoreMissingError, StoreCorruptError, or StoreError for a capture that has not ended.
    """
    path = Path(path)
    manifest = Manifest.load(path)
    if not manifest.complete and not allow_incomplete:
        raise StoreError(
            f"{path} is not complete: its capture stopped after {manifest.num_rows} rows. Run the "
            "same `axolotl distill capture` command again; it goes on where it stopped."
        )
    for shard in manifest.shards:
        for name, about in shard.files.items():
            file = path / name
            if not file.is_file():
                raise StoreMissingError(
                    f"{file} is missing, though {path}/manifest.json names it. Copy the whole "
                    "store again, or delete it and capture it again."
                )
            if file.stat().st_size != about["bytes"]:
                raise StoreCorruptError(
                    f"{file} has {file.stat().st_size} bytes, the manifest says "
                    f"{about['bytes']}. Copy it again, or delete the store and capture it again."
                )
    return TeacherStore(path, manifest)


def teacher_file(store: Path, shard: Shard) -> Path:
    return store / "teacher" / f"{shard.name}.safetensors"


def map_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a safetensors file as a read-only memory map; reads only the header."""
    data = np.memmap(path, mode="r", dtype=np.uint8)
    try:
        start = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8:start]))
        header.pop("__metadata__", None)
        return {
            name: np.asarray(data[start:][slice(*about["data_offsets"])])
            .view(DTYPES[about["dtype"]])
            .reshape(about["shape"])
            for name, about in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreCorruptError(
            f"{path} is not a safetensors file of a store: {error}. Copy it again from where the "
            "store was captured."
        ) from error
