"""Writing a store so that a kill at any moment loses only what was not committed.

A shard is written under a temporary name, synced, renamed and hashed; then a line of the journal
names it. When the store is closed, the manifest, replaced atomically, names them all. A file that
neither names does not exist.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
from filelock import FileLock
from safetensors.numpy import save

from axolotl_distill.disk.atomic import atomically, sync_folder, write_atomically
from axolotl_distill.disk.lock import lock_folder
from axolotl_distill.disk.refused import refusals
from axolotl_distill.errors import StoreError
from axolotl_distill.signal.batch import IGNORE, supervised_positions
from axolotl_distill.store import journal
from axolotl_distill.store.card import dataset_card
from axolotl_distill.store.folder import (
    FOLDERS,
    has_open_rows,
    refuse_strangers,
    remove_uncommitted,
    resume,
)
from axolotl_distill.store.manifest import FILE, Manifest
from axolotl_distill.store.outlet import Outlet
from axolotl_distill.store.payloads import RecordBatch, Shape, join_batches
from axolotl_distill.store.rows import rows_table, write_table
from axolotl_distill.store.schema import LONGEST_SHARD, MAX_SHARDS, File, Shard, shard_name

KEY = "`distill.capture.output`, or `--output`"


class StoreWriter:
    """Appends rows with their records; `commit` makes them last, `close` ends the store.

    Rows come in the order of their source. `next_source_row` is where to go on after a restart.
    Only the open shard is held in memory. What a commit costs does not depend on how many there
    were before it.

    Every method raises StoreError, saying what to do, when the disk is full or cannot be written;
    what was committed stays, and a later writer goes on with it.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        lock: FileLock,
        key: str = KEY,
        outlet: Outlet | None = None,
    ):
        self.path = path
        self._outlet = outlet
        self.manifest = manifest
        self._lock = lock
        self._key = key
        self._journal: journal.ShardJournal | None = None
        self.next_source_row = manifest.shards[-1].source_stop if manifest.shards else 0
        self._start_shard()

    @classmethod
    def create_or_resume(
        cls, path: str | Path, manifest: Manifest, key: str = KEY, outlet: Outlet | None = None
    ) -> Self:
        """Begin a store, or go on with one whose header is the same.

        key     by what another folder is named
        outlet  the address that the shards go to, `path` being its spool

        Raises StoreError when another writer is at work, when the folder holds something else or
        cannot be written or locked, or when a field of the header differs from what was captured
        so far; StoreMissingError and StoreCorruptError when a shard of it is missing or cut; what
        `Outlet.begin` does.
        """
        path = Path(path)
        with refusals(path, StoreError, key):
            if outlet is None:
                refuse_strangers(path, key)
            for folder in (path, *(path / name for name in FOLDERS)):
                folder.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)
            lock = lock_folder(path, StoreError, key)
            try:
                if outlet is not None:
                    outlet.begin()
                if (path / FILE).exists():
                    manifest = resume(path, manifest, key, outlet)
                else:
                    manifest.save(path)
                remove_uncommitted(path, manifest)
                if outlet is not None:
                    outlet.go_on(manifest)
                return cls(path, manifest, lock, key, outlet)
            except BaseException:
                if outlet is not None:
                    outlet.give_up()
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
        input_ids: Sequence[int],
        labels: Sequence[int],
        text: str,
        records: RecordBatch,
    ) -> None:
        """Add one row with its records, as the manifest's payloads have them.

        Raises StoreError for a row that no store can hold: as many labels as tokens, ids within
        the vocabulary, a record for every supervised token but the first.
        """
        self._check_row(row_id, input_ids, labels, len(records))
        assert source_row >= self.next_source_row, "rows must come in the order of their source"
        manifest = self.manifest
        entries = int(records.lengths.sum())
        manifest.payloads.check_batch(
            records, Shape(manifest.vocab_size, manifest.temperatures, len(records), entries)
        )
        self._rows.append(
            {
                "id": row_id,
                "input_ids": input_ids,
                "labels": labels,
                "teacher_start": manifest.pointer_base + self._first_record + self._records,
                "num_records": len(records),
                # Half an emoji, where a token limit cut it, has no UTF-8.
                "text": text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
            }
        )
        self._batches.append(records)
        self._records += len(records)
        self.next_source_row = source_row + 1

    def skip(self, source_row: int) -> None:
        """Count a source row that has nothing to store."""
        assert source_row >= self.next_source_row, "rows must come in the order of their source"
        self.next_source_row = source_row + 1

    def commit(self) -> None:
        """Make every row appended so far last; nothing happens when there is none."""
        if self._rows:
            self._commit(rows_table(self._rows), join_batches(self._batches))

    def append_shard(self, rows: pa.Table, records: RecordBatch, source_stop: int) -> None:
        """Commit rows that another store has, with their records, as one shard.

        rows         of ROW_SCHEMA; `teacher_start` is made anew
        source_stop  the source row after the last of them
        """
        assert not self._rows, "what was appended row by row is committed first"
        counts = rows["num_records"].to_numpy().astype(np.int64)
        assert counts.sum() == len(records), "a row has the records that it says"
        starts = self.manifest.pointer_base + self._first_record + np.cumsum(counts) - counts
        place = rows.schema.get_field_index("teacher_start")
        self.next_source_row = source_stop
        self._commit(rows.set_column(place, "teacher_start", pa.array(starts)), records)

    def _commit(self, rows: pa.Table, records: RecordBatch) -> None:
        shard = Shard(
            name=shard_name(len(self.manifest.shards)),
            rows=len(rows),
            records=len(records),
            entries=self._entries_that_fit(records),
            first_record=self._first_record,
            source_start=self._source_start,
            source_stop=self.next_source_row,
            files={},
        )
        if self._outlet is not None:
            self._outlet.wait_for_room()
        tensors = save(self.manifest.payloads.pack(records, self.manifest.shape_of(shard)))
        with refusals(self.path, StoreError, self._key):
            shard.files[shard.rows_file] = self._write(
                shard.rows_file, lambda file: write_table(rows, file)
            )
            shard.files[shard.records_file] = self._write(
                shard.records_file, lambda file: file.write(tensors)
            )
            if self._journal is None:
                self._journal = journal.ShardJournal(self.path, self.manifest.seal)
            self._journal.append(shard.model_dump())
        self.manifest.shards.append(shard)
        if self._outlet is not None:
            self._outlet.add(shard)
        self._start_shard()

    def _entries_that_fit(self, records: RecordBatch) -> int:
        """How many entries a shard of these records has. Raises StoreError where the store, or a
        shard, has no room for them."""
        entries = int(records.lengths.sum())
        if entries >= LONGEST_SHARD:
            fault, key = "entries do not fit one shard", "lower"
        elif len(self.manifest.shards) >= MAX_SHARDS:
            fault, key = f"a store has at most {MAX_SHARDS} shards", "raise"
        else:
            return entries
        raise StoreError(f"{self.path}: {fault}; {key} `distill.capture.shard_records`.")

    def close(self) -> None:
        """Commit what is open, write the dataset card and mark the store complete.

        Raises StoreError when rows or records of the source are missing; the store stays as it is.
        """
        try:
            self.commit()
            self._check_complete()
            if self.manifest.shards:
                self.manifest.shards[-1].source_stop = self.next_source_row
            if self._outlet is not None:
                self._outlet.drain()
            self.manifest.complete = True
            with refusals(self.path, StoreError, self._key):
                write_atomically(self.path / "README.md", dataset_card(self.manifest).encode())
                self.manifest.save(self.path)
                (self.path / journal.FILE).unlink(missing_ok=True)
            if self._outlet is not None:
                self._outlet.finish(self.manifest)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the store; what was not committed is lost.

        Of one without a row nothing stays: a teacher that is refused leaves no store behind.
        """
        if self._journal is not None:
            self._journal.close()
        if self._outlet is not None:
            self._outlet.stop()
        if not (self.manifest.shards or self.manifest.complete or has_open_rows(self.path)):
            with suppress(OSError):
                remove_uncommitted(self.path, self.manifest)
                for name in (FILE, journal.FILE):
                    (self.path / name).unlink(missing_ok=True)
            if self._outlet is not None:
                self._outlet.forget()
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
        self, row_id: str, input_ids: Sequence[int], labels_given: Sequence[int], num_records: int
    ) -> None:
        ids, labels = np.asarray(input_ids, np.int64), np.asarray(labels_given, np.int64)
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

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> File:
        with atomically(self.path / name) as file:
            write(file)
            size = file.tell()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": size, "sha256": digest}

    def _start_shard(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._batches: list[RecordBatch] = []
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
