"""The capture loop: rows in, records out, in the order of the source."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from axolotl_distill.args import CaptureArgs
from axolotl_distill.capture.records import RecordBatch, make_records
from axolotl_distill.errors import CaptureError
from axolotl_distill.store import StoreWriter

IGNORE = -100
WINDOW_ROWS = 256

Row = dict[str, Any]


class Teacher(Protocol):
    """What a capture asks of a teacher; see HFTeacher.logits."""

    def logits(
        self, rows: Sequence[Sequence[int]], positions: Sequence[torch.Tensor]
    ) -> Iterator[tuple[int, slice, torch.Tensor]]: ...


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
        supervised += int((np.asarray(row["labels"][1:]) != IGNORE).sum())
    return digest.hexdigest(), supervised


def capture(
    rows: Sequence[Row],
    teacher: Teacher,
    writer: StoreWriter,
    args: CaptureArgs,
    decode: Callable[[Sequence[int]], str],
) -> CaptureReport:
    """Store the teacher's distribution of every supervised token of `rows`.

    rows     tokenised: input_ids and labels (-100 = not supervised), indexable, any length;
             read in order from `writer.next_source_row`, so a second call goes on
    decode   token ids to text, for the store's readable column

    Rows are read a window at a time, batched by length up to `args.batch_tokens`, and written in
    order; a shard is committed every `args.shard_records` records. Memory is bounded by a window
    and an open shard.
    """
    start = time.monotonic()
    done = records = skipped = tokens = 0
    todo = range(writer.next_source_row, len(rows))
    total = len(rows)
    with tqdm(
        total=total,
        initial=todo.start,
        unit="row",
        desc="capture",
        mininterval=1.0 if sys.stderr.isatty() else 10.0,
    ) as progress:
        for window in _windows(todo):
            loaded = {index: rows[index] for index in window}
            found = _capture_window(loaded, teacher, args)
            for index in window:
                row = loaded[index]
                tokens += len(row["input_ids"])
                if index not in found:
                    writer.skip(index)
                    skipped += 1
                    continue
                record = found[index]
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
                if writer.open_records >= args.shard_records:
                    writer.commit()
            progress.update(len(window))
            rate = tokens / (time.monotonic() - start)
            progress.set_postfix_str(f"{rate:,.0f} tokens/s, {records:,} records", refresh=False)
    return CaptureReport(done, records, skipped, tokens, time.monotonic() - start)


def _windows(indices: Iterable[int]) -> Iterator[list[int]]:
    remaining = iter(indices)
    while window := list(islice(remaining, WINDOW_ROWS)):
        yield window


def _capture_window(
    rows: dict[int, Row], teacher: Teacher, args: CaptureArgs
) -> dict[int, RecordBatch]:
    positions = {
        index: torch.from_numpy(np.flatnonzero(np.asarray(row["labels"][1:]) != IGNORE))
        for index, row in rows.items()
    }
    supervised = [index for index, wanted in positions.items() if wanted.numel()]
    found = {}
    for batch in length_batches(rows, supervised, args.batch_tokens):
        pieces: dict[int, list[RecordBatch]] = {index: [] for index in batch}
        for place, part, logits_RV in teacher.logits(
            [rows[index]["input_ids"] for index in batch], [positions[index] for index in batch]
        ):
            index = batch[place]
            if not bool(torch.isfinite(logits_RV).all()):
                raise CaptureError(
                    f"The teacher gave logits that are not finite for row {index}. Capture with "
                    "`distill.capture.teacher.dtype: float32`, or look at that row."
                )
            seed = _seed(args.seed, index, part.start)
            pieces[index].append(make_records(logits_RV, args, seed))
        found |= {index: _join(parts) for index, parts in pieces.items()}
    return found


def length_batches(
    rows: dict[int, Row], indices: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices grouped by length, so that rows x longest stays within `batch_tokens`; a longer
    row is a batch of its own."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda index: len(rows[index]["input_ids"])):
        longest = len(rows[index]["input_ids"])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _seed(seed: int, row: int, start: int) -> int:
    """A seed of its own for every piece, so that a resumed capture draws what it would have."""
    return int(np.random.SeedSequence([seed, row, start]).generate_state(1, np.uint64)[0] >> 1)


def _join(parts: list[RecordBatch]) -> RecordBatch:
    entropies = [part.entropy for part in parts if part.entropy is not None]
    return RecordBatch(
        entries=np.concatenate([part.entries for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        tail=np.concatenate([part.tail for part in parts]),
        entropy=np.concatenate(entropies) if entropies else None,
    )


def _row_digest(row: Row) -> str:
    return hashlib.sha256(np.asarray(row["input_ids"], dtype=np.int64).tobytes()).hexdigest()[:12]
