"""The capture loop: rows in, records out, in the order of the source."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from tqdm import tqdm

from axolotl_distill.capture.records import RecordBatch
from axolotl_distill.capture.source import Row, Source, supervised_positions
from axolotl_distill.errors import DistillError
from axolotl_distill.store import StoreWriter

Found = Iterator[tuple[int, RecordBatch]]


@dataclass(frozen=True)
class CaptureReport:
    """rows and records stored by this call; rows without a supervised token; tokens a second of
    teacher input; seconds."""

    rows: int
    records: int
    skipped: int
    tokens: int
    seconds: float


def source_fingerprint(rows: Iterable[Row]) -> tuple[str, int]:
    """(sha256 over every row's token ids and labels, number of supervised tokens)."""
    digest = hashlib.sha256()
    supervised = 0
    for row in rows:
        for column in ("input_ids", "labels"):
            values = np.asarray(row[column], dtype=np.int64)
            digest.update(np.int64(values.size).tobytes() + values.tobytes())
        supervised += supervised_positions(row).size
    return digest.hexdigest(), supervised


def capture(
    rows: Sequence[Row],
    source: Source,
    writer: StoreWriter,
    shard_records: int,
    decode: Callable[[Sequence[int]], str],
) -> CaptureReport:
    """Store the teacher's distribution of every supervised token of `rows`.

    rows     tokenised: input_ids and labels (-100 = not supervised), indexable, any length;
             read in order from `writer.next_source_row`, so a second call goes on
    decode   token ids to text, for the store's readable column

    Rows are read `source.window_rows` at a time and written in order; a shard is committed every
    `shard_records` records, and when the source or the user gives up. Memory is bounded by two
    windows and an open shard.
    """
    start = time.monotonic()
    done = records = skipped = tokens = 0
    todo = range(writer.next_source_row, len(rows))
    with tqdm(
        total=len(rows),
        initial=todo.start,
        unit="row",
        desc="capture",
        mininterval=1.0 if sys.stderr.isatty() else 10.0,
    ) as progress:
        for window in _windows(todo, source.window_rows):
            loaded = {index: rows[index] for index in window}
            wanted = {i: row for i, row in loaded.items() if supervised_positions(row).size}
            found = _kept_when_cut_off(source.records(wanted), writer)
            for index, row in loaded.items():
                tokens += len(row["input_ids"])
                progress.update()
                if index not in wanted:
                    writer.skip(index)
                    skipped += 1
                    continue
                came, record = next(found)
                assert came == index, "a source must keep the order of its rows"
                writer.append(
                    source_row=index,
                    row_id=f"{index}-{_row_digest(row)}",
                    input_ids=row["input_ids"],
                    labels=row["labels"],
                    text=decode(row["input_ids"]),
                    entries=record.entries,
                    lengths=record.lengths,
                    tail=record.tail,
                    entropy=record.entropy,
                )
                done += 1
                records += len(record.lengths)
                if writer.open_records >= shard_records:
                    writer.commit()
            rate = tokens / (time.monotonic() - start)
            progress.set_postfix_str(f"{rate:,.0f} tokens/s, {records:,} records", refresh=False)
    return CaptureReport(done, records, skipped, tokens, time.monotonic() - start)


def _kept_when_cut_off(found: Found, writer: StoreWriter) -> Found:
    """Passes on what is found; commits the rows so far when the source gives up, or the user."""
    try:
        yield from found
    except (DistillError, KeyboardInterrupt):
        writer.commit()
        raise


def _windows(indices: Iterable[int], size: int) -> Iterator[list[int]]:
    remaining = iter(indices)
    while window := list(islice(remaining, size)):
        yield window


def _row_digest(row: Row) -> str:
    return hashlib.sha256(np.asarray(row["input_ids"], dtype=np.int64).tobytes()).hexdigest()[:12]
