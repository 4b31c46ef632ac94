"""Distributions of which a teacher names the likeliest tokens and the one that came, as a server
does, for sums over tokens that begin with a text."""

from collections.abc import Iterator

import numpy as np
import torch
from distill_kernels import SparseTeacher
from torch import Tensor

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.teachers.top import ZERO_PROBABILITY

DENSE_BYTES = 256 << 20


def served_note(teacher: TeacherArgs, k: int, key: str) -> str:
    """What somebody should know of a teacher behind a server that has another tokenizer."""
    return (
        f"{teacher.model} is behind a server, which names the {k} likeliest tokens of a place "
        f"(`{key}`) and the one that came. What it does not name counts as nothing where the two "
        "tokenizers cut apart, and is in the tail (docs/cross-tokenizer.md)."
    )


class Unnamed:
    """How much of the teacher's probability is of tokens that it did not name, over all positions
    that it was asked about."""

    def __init__(self) -> None:
        self.positions, self.total = 0, 0.0

    def add(self, said: SparseTeacher) -> None:
        left = 1.0 - said.logprobs.double().exp().sum(-1)
        self.positions += len(left)
        self.total += float(left.clamp_min(0.0).sum())

    @property
    def share(self) -> float:
        """Mean over positions; 0 before the first."""
        return self.total / max(1, self.positions)


def dense(said: SparseTeacher, after: np.ndarray, size: int) -> Iterator[tuple[slice, Tensor]]:
    """(which of the R positions, their log-probabilities in nats, fp32 [r, size]), some at a time.
    What is not named has -inf.

    after  int64 [R]: the tokens that came, -1 where none did. One that is not named is impossible
           to the teacher, and gets the probability that servers write for zero: what follows it can
           be told all the same
    """
    step = max(1, DENSE_BYTES // (4 * size))
    for start in range(0, len(said.ids), step):
        part = slice(start, min(start + step, len(said.ids)))
        ids = said.ids[part]
        # One column more takes what is no token.
        whole = torch.full((len(ids), size + 1), -torch.inf)
        whole.scatter_(1, torch.where(ids < 0, size, ids), said.logprobs[part].float())
        rows = np.flatnonzero(after[part] >= 0)
        at = (torch.from_numpy(rows), torch.from_numpy(after[part][rows]))
        whole[at] = whole[at].clamp_min(ZERO_PROBABILITY)
        yield part, whole[:, :size]
