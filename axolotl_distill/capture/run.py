"""The capture: rows in, records out; shards hold the order of the source."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from axolotl_distill.capture.journal import RecordJournal, stored_rows
from axolotl_distill.capture.progress import CaptureReport, Progress
from axolotl_distill.capture.source import Row, Source
from axolotl_distill.disk.refused import refusals
from axolotl_distill.errors import CaptureError, DistillError
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import Manifest, RecordBatch, StoreWriter
from axolotl_distill.store.outlet import Outlet
from axolotl_distill.store.schema import Check
from axolotl_distill.store.writer import KEY


class Capture:
    """Stores the teacher's distribution of every supervised token of some rows. Owns the store's
    folder from the moment it is made until its context ends, and is called once.

    rows           tokenised: input_ids and labels (-100 = not supervised), indexable, any length
    decode         token ids to text, for the store's readable column
    shard_records  records after which a shard is closed
    lengths        int [rows], the tokens of each; without it the progress has no end
    outlet         where `output` is an address: what sends the store there

    A store that was begun is gone on with. Raises what StoreWriter.create_or_resume does.
    """

    def __init__(
        self,
        output: str | Path,
        manifest: Manifest,
        rows: Sequence[Row],
        decode: Callable[[Sequence[int]], str],
        *,
        shard_records: int,
        lengths: np.ndarray | None = None,
        outlet: Outlet | None = None,
    ):
        self.output = str(output)
        self.folder = outlet.spool if outlet else Path(output)
        self.rows, self.lengths = rows, lengths
        self.shard_records, self.decode = shard_records, decode
        self.report = CaptureReport()
        self.writer = StoreWriter.create_or_resume(self.folder, manifest, outlet=outlet)
        self.was_complete = self.manifest.complete
        self.rows_found = stored_rows(self.folder)

    @property
    def manifest(self) -> Manifest:
        """The store's, as it is now."""
        return self.writer.manifest

    def note(self, check: Check) -> None:
        """What was found out about the records before the first of them, for the manifest.

        Raises CaptureError when the disk does not take it."""
        assert not self.rows_found, "what is committed says by which manifest it was"
        self.manifest.teacher["check"] = check
        with refusals(self.folder, CaptureError, KEY):
            self.manifest.save(self.folder)

    def __call__(self, source: Source) -> CaptureReport:
        """Rows are read `source.window_rows` at a time. Their records go to the journal in the
        order in which they come, and from there to shards in the order of the rows: a kill costs
        what the teacher was at. Memory is bounded by two windows and an open shard.

        Raises what the source does, and CaptureError when the disk does not take what is written.
        """
        first = self.writer.next_source_row
        with (
            refusals(self.folder, CaptureError, KEY),
            RecordJournal(self.folder, self.manifest.uid) as journal,
            Progress(len(self.rows), first, self.lengths, self.report) as progress,
        ):
            line = _Line(self.writer, journal, self.shard_records, self.decode, progress)
            before = source.teacher_seconds
            try:
                for window in _windows(first, len(self.rows), source.window_rows):
                    line.take({index: self.rows[index] for index in window}, source)
            except DistillError:
                # The source gave up. After Ctrl-C, which may come amid anything, the journal is
                # what is kept: a row may be half in the open shard.
                line.commit()
                raise
            line.commit()
            journal.remove()
        self.report.workers = source.workers
        self.report.teacher_seconds = source.teacher_seconds - before
        return self.report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.was_complete:
            self.writer.abandon()
        else:
            self.writer.__exit__(kind, error, trace)


class _Line:
    """Rows on their way into shards: they come from the source in any order and leave in theirs."""

    def __init__(
        self,
        writer: StoreWriter,
        journal: RecordJournal,
        shard_records: int,
        decode: Callable[[Sequence[int]], str],
        progress: Progress,
    ):
        self.writer, self.journal, self.progress = writer, journal, progress
        self.shard_records, self.decode = shard_records, decode
        self.ready = journal.read(writer.next_source_row)

    def take(self, rows: dict[int, Row], source: Source) -> None:
        """Everything of one window: what a shard or the journal has is not asked for again."""
        waiting = [index for index in rows if index >= self.writer.next_source_row][::-1]
        wanted = set()
        for index in reversed(waiting):
            row = rows[index]
            if not supervised_positions(row["labels"]).size:
                self.progress.skip(row)
            elif index in self.ready:
                self.progress.find(row)
            else:
                wanted.add(index)
        self._move(rows, waiting)
        for index, records in source.records(rows, wanted) if wanted else ():
            self.journal.append(index, records)
            self.ready[index] = records
            self.progress.add(rows[index], len(records))
            self._move(rows, waiting)
        assert not waiting, "a source must give the records of every row"

    def commit(self) -> None:
        self.writer.commit()
        self.journal.keep_only(self.ready)

    def _move(self, rows: dict[int, Row], waiting: list[int]) -> None:
        """Into the open shard, as far as rows come one after another."""
        while waiting:
            index = waiting[-1]
            row = rows[index]
            if index in self.ready:
                self._append(index, row, self.ready.pop(index))
            elif not supervised_positions(row["labels"]).size:
                self.writer.skip(index)
            else:
                return
            waiting.pop()

    def _append(self, index: int, row: Row, records: RecordBatch) -> None:
        self.writer.append(
            source_row=index,
            row_id=f"{index}-{_row_digest(row)}",
            input_ids=row["input_ids"],
            labels=row["labels"],
            text=self.decode(row["input_ids"]),
            records=records,
        )
        if self.writer.open_records >= self.shard_records:
            self.commit()


def _windows(first: int, stop: int, size: int) -> Iterator[range]:
    """The rows from the window of row `first` on. Where windows begin depends on no run."""
    for start in range(first - first % size, stop, size):
        yield range(start, min(start + size, stop))


def _row_digest(row: Row) -> str:
    return hashlib.sha256(np.asarray(row["input_ids"], dtype=np.int64).tobytes()).hexdigest()[:12]
