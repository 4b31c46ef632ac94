"""What a teacher is: whoever can say, of a text that is there, how likely every next token was."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from axolotl_distill.signal.signal import Signal, Want


class Teacher(Protocol):
    """Grades text. Capture keeps what it says; training would use it at once.

    vocab_size  how many token ids it shares with the student; it says nothing of ids beyond
    """

    vocab_size: int

    def grade(
        self, rows: Mapping[int, Sequence[int]], positions: Mapping[int, np.ndarray], want: Want
    ) -> Iterator[tuple[int, slice, Signal]]:
        """Yields (row, part of its positions, signal of that part), each as soon as it is there.

        rows       token ids by a number that the caller knows the row by
        positions  int64 [R] for each row, ascending, R >= 1: position t is about token t + 1

        The parts of a row come in order and cover its positions; rows come in any order. Raises a
        DistillError, naming the row where one is to blame; what was yielded before it stands.
        """
        ...
