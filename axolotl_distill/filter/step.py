"""What a filter step is, and what it says of a row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from axolotl_distill.trajectories.journal import Row


@dataclass(frozen=True)
class Verdict:
    """Keep a row or drop it, and why."""

    keep: bool
    reason: str = ""  # why dropped, short and countable: the same words for the same cause
    score: float | None = None  # in the step's own units; kept as the row's score under its name
    detail: str = ""  # for people, on the rejected row: what was seen


class Step(Protocol):
    """One named stage of a filter. Steps stream: bounded memory for any number of rows.

    A step that holds something open (workers, a model) also has `close()`.
    """

    name: str  # the name it has in reports and scores
    row_wise: bool  # whether a row's verdict depends on that row alone; then it may run anywhere

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        """One verdict a row, in order."""
        ...
