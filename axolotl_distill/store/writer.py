"""Writing a store so that a kill at any moment loses only what was not committed.

A shard is written under a temporary name, synced, renamed and hashed; then a line of the journal
names it. When the store is closed, the manifest, replaced atomically, names them all. A file that
neither names does not exist.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from safetensors.numpy import save

from axolotl_distill.disk.atomic import TEMPORARY, atomically, sync_folder, write_atomically
from axolotl_distill.disk.lock import LOCK, lock_folder
from axolotl_distill.disk.refused import refusals
from axolotl_distill.errors import StoreError
from axolotl_distill.signal.batch import IGNORE, supervised_positions
from axolotl_distill.store import journal
from axolotl_distill.store.card import dataset_card
from axolotl_distill.store.checked import check_sizes
from axolotl_distill.store.encoding import are_entries
from axolotl_distill.store.manifest import FILE, Manifest
from axolotl_distill.store.rows import ROW_SCHEMA
from axolotl_distill.store.schema import MAX_SHARDS, Shard, shard_name

# Rows that are in no shard yet (capture/journal.py), and folders of tokenised text: what a capture
# keeps beside the store while it runs.
JOURNAL = "open-rows.journal"
TOKENISED = ".tokenised-"
KEY = "`distill.capture.output`, or `--output`"
FOLDERS = {"data": "parquet", "teacher": "safetensors"}


class StoreWriter:
    """Appends rows with their records; `commit` makes them last, `close` ends the store.

    Rows come in the order of their source. `next_source_row` is where to go on after a restart.
    Only the open shard is held in memory. What a commit costs does not depend on how many there
    were before it.

    Every method raises StoreError, saying what to do, when the disk is full or cannot be written;
    what was committed stays, and a later writer goes on with it.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: FileLock):
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._journal: journal.ShardJournal | None = None
        self._stride = manifest.method["k"] if manifest.method["kind"] == "topk" else None
        self.next_source_row = manifest.shards[-1].source_stop if manifest.shards else 0
        self._start_shard()

    @classmethod
    def create_or_resume(cls, path: str | Path, manifest: Manifest) -> Self:
        """Begin a store, or go on with one whose header is the same.

        Raises StoreError when another writer is at work, when the folder holds something else or
        cannot be written or locked, or when a field of the header differs from what was captured
        so far; StoreMissingError and StoreCorruptError when a shard of it is missing or cut.
        """
        path = Path(path)
        with refusals(path, StoreError, KEY):
            refuse_strangers(path)
            for folder in (path, *(path / name for name in FOLDERS)):
                folder.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)
            lock = lock_folder(path, StoreError)
            try:
                if (path / FILE).exists():
                    manifest = _resume(path, manifest)
                else:
                    manifest.save(path)
                _remove_uncommitted(path, manifest)
                return cls(path, manifest, lock)
            except BaseException:
                lock.release()
                raise

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

        Raises StoreError for a row that no store can hold: as many labels as tokens, ids within
        the vocabulary, a record for every supervised token but the first.
        """
        num_records = len(lengths)
        self._check_row(row_id, input_ids, labels, num_records, entries)
        assert source_row >= self.next_source_row, "rows must come in the order of their source"
        assert len(entries) == int(np.sum(lengths)) and tail.shape == (
            num_records,
            len(self.manifest.temperatures),
        )
        assert np.all(np.asarray(lengths) <= self.manifest.longest_record)
        self._rows.append(
            {
                "id": row_id,
                "input_ids": input_ids,
                "labels": labels,
                "teacher_start": self.manifest.pointer_base + self._first_record + self._records,
                "num_records": num_records,
                # Half an emoji, where a token limit cut it, has no UTF-8.
                "text": text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
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
        shard = Shard(
            name=shard_name(len(self.manifest.shards)),
            rows=len(self._rows),
            records=self._records,
            entries=sum(entries.size for entries in self._entries),
            first_record=self._first_record,
            source_start=self._source_start,
            source_stop=self.next_source_row,
            files={},
        )
        if len(self.manifest.shards) >= MAX_SHARDS or shard.entries >= 2**32:
            fault, key = ("entries do not fit one shard", "lower")
            if shard.entries < 2**32:
                fault, key = (f"a store has at most {MAX_SHARDS} shards", "raise")
            raise StoreError(f"{self.path}: {fault}; {key} `distill.capture.shard_records`.")
        table = pa.Table.from_pylist(self._rows, ROW_SCHEMA)
        tensors = save(self._tensors())
        with refusals(self.path, StoreError, KEY):
            shard.files[shard.rows_file] = self._write(
                shard.rows_file, lambda file: pq.write_table(table, file, compression="zstd")
            )
            shard.files[shard.records_file] = self._write(
                shard.records_file, lambda file: file.write(tensors)
            )
            if self._journal is None:
                self._journal = journal.ShardJournal(self.path, self.manifest.seal)
            self._journal.append(shard.model_dump())
        self.manifest.shards.append(shard)
        self._start_shard()

    def close(self) -> None:
        """Commit what is open, write the dataset card and mark the store complete.

        Raises StoreError when rows or records of the source are missing; the store stays as it is.
        """
        try:
            self.commit()
            self._check_complete()
            if self.manifest.shards:
                self.manifest.shards[-1].source_stop = self.next_source_row
            self.manifest.complete = True
            with refusals(self.path, StoreError, KEY):
                write_atomically(self.path / "README.md", dataset_card(self.manifest).encode())
                self.manifest.save(self.path)
                (self.path / journal.FILE).unlink(missing_ok=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the store; what was not committed is lost.

        Of one without a row nothing stays: a teacher that is refused leaves no store behind.
        """
        if self._journal is not None:
            self._journal.close()
        if not (self.manifest.shards or self.manifest.complete or _has_open_rows(self.path)):
            with suppress(OSError):
                _remove_uncommitted(self.path, self.manifest)
                for name in (FILE, journal.FILE):
                    (self.path / name).unlink(missing_ok=True)
        self._lock.release()

    def _check_complete(self) -> None:
        source, records = self.manifest.source, self.manifest.num_records
        if (self.next_source_row, records) != (source["num_rows"], source["supervised"]):
            raise StoreError(
                f"{self.path} is not complete: it has {records} records of the first "
                f"{self.next_source_row} rows of a source with {source['supervised']} supervised "
                f"tokens in {source['num_rows']} rows. Run the same command again; it goes on "
                "where it stopped."
            )

    def _check_row(
        self, row_id: str, input_ids: Any, labels: Any, num_records: int, entries: np.ndarray
    ) -> None:
        ids, labels = np.asarray(input_ids, np.int64), np.asarray(labels, np.int64)
        size = self.manifest.vocab_size
        supervised = supervised_positions(labels).size
        if ids.shape != labels.shape or supervised != num_records:
            raise StoreError(
                f"row {row_id} has {ids.size} tokens, {labels.size} labels, {supervised} of them "
                f"supervised, and {num_records} records; a record belongs to every supervised "
                "token but the first."
            )
        for values in (ids, labels[labels != IGNORE]):
            if values.size and not 0 <= values.min() <= values.max() < size:
                raise StoreError(
                    f"row {row_id} has token ids from {values.min()} to {values.max()}, and the "
                    f"tokenizer has {size}. Its text was tokenised with another tokenizer."
                )
        if ids.size > self.manifest.sequence_len:
            raise StoreError(
                f"row {row_id} has {ids.size} tokens, more than `sequence_len: "
                f"{self.manifest.sequence_len}`. Raise it, or cut or drop the row."
            )
        assert are_entries(np.asarray(entries), size), "entries come from store.encoding"

    def _tensors(self) -> dict[str, np.ndarray]:
        arrays = {"entries": np.concatenate(self._entries), "tail": np.concatenate(self._tail)}
        lengths = np.concatenate(self._lengths)
        if self._stride is None or np.any(lengths != self._stride):
            arrays["offsets"] = np.cumsum(np.concatenate([[0], lengths])).astype(np.uint32)
        if self._entropy:
            arrays["entropy"] = np.concatenate(self._entropy)
        return arrays

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> dict[str, Any]:
        with atomically(self.path / name) as file:
            write(file)
            size = file.tell()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": size, "sha256": digest}

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


def refuse_strangers(path: Path) -> None:
    """Raise StoreError for a folder that holds something, unless it is a store, or what a writer
    killed before its first manifest leaves: two empty folders."""
    if not path.exists() or (path / FILE).exists():
        return
    ours = {LOCK, FILE + TEMPORARY, *FOLDERS}
    names = {entry.name for entry in path.iterdir()} - ours
    strangers = {name for name in names if not name.startswith(TOKENISED)}
    for folder in FOLDERS:
        if (path / folder).is_dir():
            strangers |= {f"{folder}/{entry.name}" for entry in (path / folder).iterdir()}
    if strangers:
        raise StoreError(
            f"{path} is a folder with other files in it ({min(strangers)}) and no teacher store. "
            "Choose another `distill.capture.output`, or empty it."
        )


def _resume(path: Path, manifest: Manifest) -> Manifest:
    found = Manifest.load(path)
    if not found.shards and not found.complete and not _has_open_rows(path):
        # Begun and given up, perhaps for a wrong key that has been mended since.
        (path / journal.FILE).unlink(missing_ok=True)
        manifest.save(path)
        return manifest
    if changed := found.differences(manifest):
        names = dict.fromkeys(key.partition(".")[0] for key, *_ in changed)
        another = " and another ".join(f"`{name}`" for name in names)
        details = "; ".join(f"{key} is {mine} there and {now} now" for key, mine, now in changed)
        weights = (
            f" The files of the teacher {found.teacher['name']} were changed since: put the old "
            "ones back to go on."
            if any(key == "teacher.weights" for key, *_ in changed)
            else ""
        )
        raise StoreError(
            f"{path} was captured with another {another}: {details}.{weights} Use another "
            "`distill.capture.output`, or delete the folder to capture anew."
        )
    check_sizes(path, found)
    return found


def _has_open_rows(path: Path) -> bool:
    journal = path / JOURNAL
    return journal.exists() and journal.stat().st_size > 0


def _remove_uncommitted(path: Path, manifest: Manifest) -> None:
    """Delete what a killed writer left behind: temporary files and shards without a commit."""
    named = {name for shard in manifest.shards for name in shard.files}
    for folder, kind in FOLDERS.items():
        ours = re.compile(rf"shard-[0-9]{{5,}}\.{kind}({re.escape(TEMPORARY)})?")
        for file in (path / folder).iterdir():
            if ours.fullmatch(file.name) and f"{folder}/{file.name}" not in named:
                file.unlink()
    if manifest.complete:
        (path / journal.FILE).unlink(missing_ok=True)
