"""Writing a store so that a kill at any moment loses only what was not committed.

A shard is written under a temporary name, synced, renamed and hashed; then the manifest, replaced
atomically, names it. A file that the manifest does not name does not exist.
"""

import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from axolotl_distill.errors import StoreError
from axolotl_distill.store.card import dataset_card
from axolotl_distill.store.manifest import (
    FILE,
    TEMPORARY,
    Manifest,
    Shard,
    publish,
    sync_folder,
    write_atomically,
)

ROW_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        # int64: what Axolotl's own tokenisation gives, or the two could not be concatenated.
        "labels": pa.list_(pa.int64()),
        "teacher_start": pa.int64(),
        "num_records": pa.int32(),
        "text": pa.string(),
    }
)


class StoreWriter:
    """Appends rows with their records; `commit` makes them last, `close` ends the store.

    Rows come in the order of their source. `next_source_row` is where to go on after a restart.
    Only the open shard is held in memory.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: Any):
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._stride = manifest.method["k"] if manifest.method["kind"] == "topk" else None
        self.next_source_row = manifest.shards[-1].source_stop if manifest.shards else 0
        self._start_shard()

    @classmethod
    def create_or_resume(cls, path: str | Path, manifest: Manifest) -> Self:
        """Begin a store, or go on with one whose header is the same.

        Raises StoreError when another writer is at work, when the folder holds something else,
        or when a field of the header differs from what was captured so far.
        """
        path = Path(path)
        _refuse_strangers(path)
        for folder in (path, path / "data", path / "teacher"):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)
        lock = (path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StoreError(
                f"{path} is being written by another process. Wait for it, or stop it."
            ) from None
        try:
            if (path / FILE).exists():
                manifest = _resume(path, manifest)
            # Otherwise the first commit writes it: a teacher that cannot be had leaves no store.
            _remove_uncommitted(path, manifest)
        except BaseException:
            lock.close()
            raise
        return cls(path, manifest, lock)

    @property
    def open_records(self) -> int:
        """Records not yet committed."""
        return self._records

    def append(
        self,
        *,
        source_row: int,
        row_id: str,
        input_ids: Any,
        labels: Any,
        text: str,
        entries: np.ndarray,
        lengths: np.ndarray,
        tail: np.ndarray,
        entropy: np.ndarray | None,
    ) -> None:
        """Add one row.

        entries  uint32 [E], the records one after another     lengths  [R] entries of each
        tail     int16 [R, temperatures]                       entropy  int16 [R], draws only
        """
        num_records = len(lengths)
        assert source_row >= self.next_source_row, "rows must come in the order of their source"
        assert len(entries) == int(np.sum(lengths)) and tail.shape == (
            num_records,
            len(self.manifest.temperatures),
        )
        assert self._stride is None or np.all(np.asarray(lengths) <= self._stride)
        self._rows.append(
            {
                "id": row_id,
                "input_ids": input_ids,
                "labels": labels,
                "teacher_start": self.manifest.pointer_base + self._first_record + self._records,
                "num_records": num_records,
                "text": text,
            }
        )
        self._entries.append(np.asarray(entries, np.uint32))
        self._lengths.append(np.asarray(lengths, np.int64))
        self._tail.append(np.asarray(tail, np.int16))
        if entropy is not None:
            self._entropy.append(np.asarray(entropy, np.int16))
        self._records += num_records
        self.next_source_row = source_row + 1

    def skip(self, source_row: int) -> None:
        """Count a source row that has nothing to store."""
        assert source_row >= self.next_source_row, "rows must come in the order of their source"
        self.next_source_row = source_row + 1

    def commit(self) -> None:
        """Make every row appended so far last; nothing happens when there is none."""
        if not self._rows:
            return
        name = f"shard-{len(self.manifest.shards):05d}"
        arrays = {
            "entries": np.concatenate(self._entries),
            "tail": np.concatenate(self._tail),
        }
        lengths = np.concatenate(self._lengths)
        if self._stride is None or np.any(lengths != self._stride):
            stops = np.cumsum(np.concatenate([[0], lengths]))
            if stops[-1] >= 2**32:
                raise StoreError(
                    f"{stops[-1]} entries do not fit one shard; lower `distill.capture."
                    "shard_records`."
                )
            arrays["offsets"] = stops.astype(np.uint32)
        if self._entropy:
            arrays["entropy"] = np.concatenate(self._entropy)
        files = {
            f"data/{name}.parquet": self._write(
                f"data/{name}.parquet",
                lambda file: pq.write_table(
                    pa.Table.from_pylist(self._rows, ROW_SCHEMA), file, compression="zstd"
                ),
            ),
            f"teacher/{name}.safetensors": self._write(
                f"teacher/{name}.safetensors", lambda file: save_file(arrays, file)
            ),
        }
        self.manifest.shards.append(
            Shard(
                name=name,
                rows=len(self._rows),
                records=self._records,
                entries=int(arrays["entries"].size),
                first_record=self._first_record,
                source_start=self._source_start,
                source_stop=self.next_source_row,
                files=files,
            )
        )
        self.manifest.save(self.path)
        self._start_shard()

    def close(self) -> None:
        """Commit what is open, write the dataset card and mark the store complete."""
        self.commit()
        if self.manifest.shards:
            self.manifest.shards[-1].source_stop = self.next_source_row
        self.manifest.complete = True
        write_atomically(self.path / "README.md", dataset_card(self.manifest).encode())
        self.manifest.save(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the store; what was not committed is lost.

        The lock's file stays: deleting it would let two writers hold locks on two files.
        """
        self._lock.close()

    def _write(self, name: str, write: Any) -> dict[str, Any]:
        path = self.path / name
        temporary = path.with_name(path.name + TEMPORARY)
        write(str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        publish(temporary, path)
        return {"bytes": path.stat().st_size, "sha256": digest}

    def _start_shard(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._entries: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._tail: list[np.ndarray] = []
        self._entropy: list[np.ndarray] = []
        self._records = 0
        self._first_record = self.manifest.num_records
        self._source_start = self.next_source_row

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _refuse_strangers(path: Path) -> None:
    """Raise StoreError for a folder that holds something, unless it is a store, or what a writer
    killed before its first manifest leaves: two empty folders."""
    if not path.exists() or (path / FILE).exists():
        return
    ours = {".lock", FILE + TEMPORARY, "data", "teacher"}
    strangers = {entry.name for entry in path.iterdir()} - ours
    for folder in ("data", "teacher"):
        if (path / folder).is_dir():
            strangers |= {f"{folder}/{entry.name}" for entry in (path / folder).iterdir()}
    if strangers:
        raise StoreError(
            f"{path} is a folder with other files in it ({min(strangers)}) and no teacher store. "
            "Choose another `distill.capture.output`, or empty it."
        )


def _resume(path: Path, manifest: Manifest) -> Manifest:
    found = Manifest.load(path)
    if not found.shards and not found.complete:
        # Begun and given up, perhaps for a wrong key that has been mended since.
        manifest.save(path)
        return manifest
    for name in found.differences(manifest):
        raise StoreError(
            f"{path} was captured with another `{name}`: it has {getattr(found, name)}, this "
            f"config gives {getattr(manifest, name)}. Use another `distill.capture.output`, or "
            "delete the folder to capture anew."
        )
    return found


def _remove_uncommitted(path: Path, manifest: Manifest) -> None:
    """Delete what a killed writer left behind: temporary files and shards without a commit."""
    named = {name for shard in manifest.shards for name in shard.files}
    for folder in ("data", "teacher"):
        for file in (path / folder).glob("shard-*"):
            if f"{folder}/{file.name}" not in named:
                file.unlink()
