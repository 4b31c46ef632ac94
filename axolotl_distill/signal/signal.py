"""What is asked of a teacher, and what it says."""

from dataclasses import dataclass

import numpy as np
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor


@dataclass(frozen=True)
class Want:
    """What is asked of a teacher, for every position.

    likeliest    its distribution of the token after the position: as many of its likeliest tokens
                 as are enough, or None = every token. A teacher that has all of them may give them
                 all.
    realised     with `likeliest`: the token that does come after the position is given too
    unprojected  in place of logits it may give its last hidden states and its output head
    layers       whose outputs are given, too
    """

    likeliest: int | None = None
    realised: bool = False
    unprojected: bool = False
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """G spans of text, as a student with another tokenizer and the teacher have them.

    student  int64 [G, 2]: (first, behind the last) of the student's M positions; ascending
    teacher  int64 [G, 2]: the same of the teacher's N
    ends     bool [G]: the span is the last of its answer
    tokens   int64 [N]: the teacher's token after each of its positions
    """

    student: np.ndarray
    teacher: np.ndarray
    ends: np.ndarray
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class Signal:
    """What a teacher says of N positions of text, one row each, in their order.

    distribution  of the token after each position: DenseLogits or DenseTeacher at T = 1;
                  SparseTeacher, whose numbers are at T = 1 from a teacher that was asked, and at
                  the run's temperature from a source. A row whose ids are all -1 says nothing.
    layers        [N, P, D], what the wanted layers hand on at each position, in their type; None
                  where none was wanted, or nothing was said of any position
    known         bool [N], which rows `layers` are of; None: all
    pairs   where the N positions are the teacher's own, of its tokens: which belong to which of the
            student's
    """

    distribution: Distribution
    layers: Tensor | None = None
    known: Tensor | None = None
    pairs: Pairs | None = None


@dataclass(frozen=True)
class Part:
    """What one of several teachers says of a batch whose M positions each learn from one of them.

    name    of its choice
    at      int64 [m], which of the M positions are its own, ascending. The first is 0, a position
            that predicts nothing and is in every part: none is empty.
    signal  of these
    """

    name: str
    at: Tensor
    signal: Signal


Said = Signal | tuple[Part, ...]
"""What a source says of a batch."""
