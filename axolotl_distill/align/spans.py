"""Byte-offset alignment of two tokenisations of one text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
    """The smallest spans that both sides bound: span g holds the tokens teacher[g] … teacher[g+1]
    of one side and student[g] … student[g+1] of the other, and the bytes[g] … bytes[g+1]; all
    int64 [spans + 1], ascending without repetition."""

    teacher: np.ndarray
    student: np.ndarray
    bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.bytes) - 1


def align(teacher: Sequence[int] | np.ndarray, student: Sequence[int] | np.ndarray) -> Spans:
    """The spans of two lists of token lengths in bytes, of one text.

    Linear in the tokens. Raises ValueError where a token has no bytes, or the texts are not of one
    length: whether they are the same text is for the caller to see.
    """
    ends = [
        np.concatenate([[0], np.cumsum(np.asarray(side, np.int64))]) for side in (teacher, student)
    ]
    for side in ends:
        if (np.diff(side) <= 0).any():
            raise ValueError("a token has no bytes, and stands nowhere in the text")
    if ends[0][-1] != ends[1][-1]:
        raise ValueError(f"one side has {ends[0][-1]} bytes, the other {ends[1][-1]}")
    common, first, second = np.intersect1d(
        ends[0], ends[1], assume_unique=True, return_indices=True
    )
    return Spans(first, second, common)
