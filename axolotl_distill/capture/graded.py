"""Records of what a teacher says, whoever the teacher is."""

import math
import time
from collections.abc import Iterable, Iterator, Set
from itertools import groupby

import numpy as np
import torch
from distill_kernels import DenseLogits, SparseTeacher

from axolotl_distill.capture.hidden import hidden_columns
from axolotl_distill.capture.records import make_records
from axolotl_distill.capture.source import WINDOW_ROWS, Row, window_of
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import OTHER_IDS, supervised_positions
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.store import RecordBatch
from axolotl_distill.store.payloads import distribution_of, join_batches
from axolotl_distill.teachers.base import Teacher
from axolotl_distill.teachers.top import TopLogprobs


class GradedSource:
    """Has a teacher grade a window of rows.

    batch_tokens  of rows of like length that it gets together; None: it takes a window at once
    """

    workers = 1

    def __init__(self, teacher: Teacher, args: CaptureArgs, batch_tokens: int | None = None):
        self.teacher = teacher
        self.args = args
        self.batch_tokens = batch_tokens
        self.window_rows = window_of(args)
        self.teacher_seconds = 0.0
        most = distribution_of(args).likeliest
        hidden = args.hidden_states
        self.want = Want(
            most and min(most, teacher.vocab_size),
            layers=tuple(hidden.layers or ()) if hidden else (),
        )

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises what the teacher does, and CaptureError for logits that are not
        finite."""
        for batch in self._batches(rows, wanted):
            for index, records in self.grade({index: rows[index] for index in batch}):
                if index in wanted:
                    yield index, records

    def _batches(self, rows: dict[int, Row], wanted: Set[int]) -> Iterable[list[int]]:
        if self.batch_tokens is None:
            # A server is asked for what is wanted and nothing else.
            return [sorted(wanted)]
        return batches(rows, wanted, self.batch_tokens, self.window_rows)

    def grade(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """The records of one batch; every row has a supervised token."""
        positions = {index: supervised_positions(row["labels"]) for index, row in rows.items()}
        ids = {index: row["input_ids"] for index, row in rows.items()}
        parts: dict[int, list[RecordBatch]] = {index: [] for index in rows}
        start = time.monotonic()
        for index, part, signal in self.teacher.grade(ids, positions, self.want):
            _wait_for(signal)
            self.teacher_seconds += time.monotonic() - start
            parts[index].append(self._records(index, part.start, signal))
            if part.stop == positions[index].size:
                yield index, join_batches(parts.pop(index))
            start = time.monotonic()

    def _records(self, index: int, start: int, signal: Signal) -> RecordBatch:
        said = signal.distribution
        if isinstance(said, SparseTeacher):
            return records_from_top(
                TopLogprobs(said.ids.numpy(), said.logprobs.numpy()),
                temperatures=self.args.own_temperatures,
                vocab_size=self.teacher.vocab_size,
                p=self.args.p if self.args.method == "nucleus" else math.inf,
            )
        assert isinstance(said, DenseLogits), "no teacher gives records of anything else"
        if not bool(torch.isfinite(said.logits).all()):
            raise CaptureError(
                f"The teacher gave logits that are not finite for row {index}. Capture with "
                "`distill.capture.teacher.dtype: float32`, or look at that row."
            )
        records = make_records(said.logits, self.args, _seed(self.args.seed, index, start))
        if self.args.hidden_states is None:
            return records
        assert signal.layers is not None, "a model gives what was wanted"
        hidden = hidden_columns(signal.layers, self.args.hidden_states.dtype, index)
        return RecordBatch({**records.columns, **hidden}, records.lengths)


def batches(
    rows: dict[int, Row], wanted: Set[int], batch_tokens: int, window_rows: int = WINDOW_ROWS
) -> Iterator[list[int]]:
    """The rows that a model grades together, wherever that is done: all batches that hold a row
    that is wanted.

    A model's logits differ in their last bits with what a row is padded to. So batches are made of
    whole windows, whatever is there already: a capture that was killed, or has other workers, gives
    the same records.
    """
    supervised = [n for n, row in rows.items() if supervised_positions(row["labels"]).size]
    for _, window in groupby(supervised, key=lambda index: index // window_rows):
        for batch in length_batches({n: rows[n] for n in window}, batch_tokens):
            if not wanted.isdisjoint(batch):
                yield batch


def length_batches(rows: dict[int, Row], batch_tokens: int) -> Iterator[list[int]]:
    """Their numbers grouped by length, so that rows x longest stays within `batch_tokens`; a longer
    row is a batch of its own. Tokens are the teacher's, where it has its own."""
    lengths = {
        index: len(row[OTHER_IDS.name if OTHER_IDS.name in row else "input_ids"])
        for index, row in rows.items()
    }
    batch: list[int] = []
    for index in sorted(rows, key=lengths.__getitem__):
        longest = lengths[index]
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _wait_for(signal: Signal) -> None:
    """What a device still computes would count as another's time."""
    said = signal.distribution
    if isinstance(said, DenseLogits) and said.logits.device.type != "cpu":
        torch.accelerator.synchronize(said.logits.device)


def _seed(seed: int, row: int, start: int) -> int:
    """A seed of its own for every piece, so that a resumed capture draws what it would have."""
    return int(np.random.SeedSequence([seed, row, start]).generate_state(1, np.uint64)[0] >> 1)
