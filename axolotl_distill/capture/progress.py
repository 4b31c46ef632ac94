"""What a capture shows while it goes, and what it has to say at its end."""

import sys
import time
from dataclasses import dataclass
from typing import Self

import numpy as np
from tqdm import tqdm

from axolotl_distill.capture.source import Row


def bar_interval() -> float:
    """Seconds between two updates of a bar: in a log file each is a line."""
    return 0.5 if sys.stderr.isatty() else 10.0


@dataclass
class CaptureReport:
    """rows, records and tokens that the teacher gave in this call, and its seconds; rows that an
    earlier call had left in the journal; rows without a supervised token; processes that graded,
    and the seconds of their teachers alone, summed."""

    rows: int = 0
    records: int = 0
    tokens: int = 0
    found: int = 0
    skipped: int = 0
    seconds: float = 0.0
    workers: int = 1
    teacher_seconds: float = 0.0

    @property
    def teacher_share(self) -> float:
        """Of the workers' time, what the teacher's own forward passes took."""
        return self.teacher_seconds / max(self.seconds * self.workers, 1e-9)

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


class Progress:
    """A bar over the tokens of all rows, for they are what a teacher takes its time for.

    What is there already, and what needs no teacher, moves the bar and counts for no speed, so the
    time that is left is that of the tokens that are left.
    """

    def __init__(self, rows: int, start: int, lengths: np.ndarray | None, report: CaptureReport):
        """`start` rows of `rows` are in shards; `lengths`: see Capture. `report` is counted in."""
        self.report = report
        self._rows, self._at = rows, start
        self._start = time.monotonic()
        self._bar = tqdm(
            total=None if lengths is None else int(lengths.sum()),
            initial=0 if lengths is None else int(lengths[:start].sum()),
            unit=" tokens",
            unit_scale=True,
            desc="capture",
            smoothing=0,
            mininterval=bar_interval(),
        )
        self._show()

    def add(self, row: Row, records: int) -> None:
        """A row that the teacher gave."""
        self.report.rows += 1
        self.report.records += records
        self.report.tokens += len(row["input_ids"])
        self._move(row)

    def find(self, row: Row) -> None:
        """A row that an earlier call had left."""
        self.report.found += 1
        self._bar.initial += len(row["input_ids"])
        self._move(row)

    def skip(self, row: Row) -> None:
        """A row with nothing to store."""
        self.report.skipped += 1
        self._bar.initial += len(row["input_ids"])
        self._move(row)

    def _move(self, row: Row) -> None:
        self._at += 1
        self.report.seconds = time.monotonic() - self._start
        self._show()
        self._bar.update(len(row["input_ids"]))

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._at:,} of {self._rows:,} rows", refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
