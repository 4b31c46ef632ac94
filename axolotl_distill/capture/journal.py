"""Records of rows that are in no shard yet, so that a kill costs what is under way and no more.

A shard holds its rows in the order of their source and is worth writing only when it is large;
records come in any order, a few rows at a time. Between the two stands one file beside the shards,
which only grows until a shard is committed:

    uid of the store, 32 characters
    then for every row: length of the frame, uint64; its CRC-32, uint32; the frame, safetensors
    with `row` int64 [1] (its number in the source), `lengths`, and the columns of its records

What is written survives the process at once, and the machine after SYNC_SECONDS. A frame that was
torn off is cut away: its row is captured again.
"""

import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from safetensors.numpy import load, save

from axolotl_distill.disk.atomic import atomically
from axolotl_distill.disk.journal import Journal
from axolotl_distill.errors import StoreError, StoreMissingError
from axolotl_distill.store import Manifest, RecordBatch
from axolotl_distill.store.folder import JOURNAL

SYNC_SECONDS = 10.0
FRAME = struct.Struct("<QI")
UID_CHARACTERS = 32


class RecordJournal:
    """The file of one store; the store's lock keeps other writers away from it.

    Raises StoreError for the journal of another store.
    """

    def __init__(self, store: Path, uid: str):
        self.uid = uid.encode()
        self._file = Journal(store / JOURNAL, is_whole=None)
        self._synced = time.monotonic()
        self._file.file.seek(0)
        seen = self._file.file.read(UID_CHARACTERS)
        if len(seen) < UID_CHARACTERS:
            self._file.cut(0)
        elif seen != self.uid:
            self._file.close()
            raise StoreError(
                f"{self._file.path} holds rows of the store {seen.decode(errors='replace')}, and "
                f"this one is {uid}. Delete that file, or put back the {store.name} that it "
                "belongs to."
            )

    def read(self, first: int) -> dict[int, RecordBatch]:
        """What earlier runs left of the rows from number `first` on. To be called before the first
        `append`: what was torn off is cut away."""
        found = {}
        whole = min(UID_CHARACTERS, self._file.size)
        self._file.file.seek(whole)
        for row, records in frames(self._file.file):
            if row >= first:
                found[row] = records
            whole = self._file.file.tell()
        self._file.cut(whole)
        return found

    def append(self, row: int, records: RecordBatch) -> None:
        """Returns when the records would survive a kill of this process."""
        uid = b"" if self._file.size else self.uid
        self._file.append(uid + frame_of(row, records), sync=False)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Returns when everything that was appended would survive a power cut."""
        self._file.sync()
        self._synced = time.monotonic()

    def keep_only(self, waiting: Mapping[int, RecordBatch]) -> None:
        """Forget every row but these: a shard holds the others now."""
        if not waiting:
            self._file.cut(0)
            return
        with atomically(self._file.path) as file:
            file.write(b"".join([self.uid, *(frame_of(*item) for item in waiting.items())]))
        self._file.close()
        self._file = Journal(self._file.path, is_whole=None)

    def remove(self) -> None:
        """A shard holds every row."""
        self._file.close()
        self._file.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file.file.closed:
            return
        self.sync()
        empty = not self._file.size
        self._file.close()
        if empty:
            self._file.path.unlink()


def stored_rows(store: Path) -> int:
    """Rows of a store that is there or not, in shards and in the journal."""
    try:
        manifest = Manifest.load(store)
    except StoreMissingError:
        return 0
    first = manifest.shards[-1].source_stop if manifest.shards else 0
    try:
        with (store / JOURNAL).open("rb") as file:
            file.seek(UID_CHARACTERS)
            waiting = len({row for row, _ in frames(file) if row >= first})
    except FileNotFoundError:
        waiting = 0
    return manifest.num_rows + waiting


def frame_of(row: int, records: RecordBatch) -> bytes:
    lengths = np.asarray(records.lengths, np.int64)
    arrays = {**records.columns, "row": np.array([row], np.int64), "lengths": lengths}
    frame = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return FRAME.pack(len(frame), zlib.crc32(frame)) + frame


def frames(file: BinaryIO) -> Iterator[tuple[int, RecordBatch]]:
    """From where `file` is to the first frame that is not whole."""
    size = os.fstat(file.fileno()).st_size
    while len(head := file.read(FRAME.size)) == FRAME.size:
        length, checksum = FRAME.unpack(head)
        if length > size:
            return
        frame = file.read(length)
        if len(frame) < length or zlib.crc32(frame) != checksum:
            return
        columns = load(frame)
        row, lengths = int(columns.pop("row")[0]), columns.pop("lengths")
        yield row, RecordBatch(columns, lengths)
