"""What the capture loop asks for, whoever the teacher is."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from axolotl_distill.capture.records import RecordBatch

IGNORE = -100
# What a teacher needs at once to make full batches, or to keep a server busy.
WINDOW_ROWS = 256

Row = dict[str, Any]


class Source(Protocol):
    """A teacher, or what is left of one, as the capture loop sees it. `window_rows`: how many rows
    it wants at a time, all of which are held in memory."""

    window_rows: int

    def records(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """The records of rows that have a supervised token, in the order of `rows`.

        A row that was yielded is stored, whatever happens to the ones after it.
        """
        ...


def supervised_positions(row: Row) -> np.ndarray:
    """int64 [R], ascending: the positions t whose next token, t + 1, is supervised."""
    return np.flatnonzero(np.asarray(row["labels"][1:]) != IGNORE)
