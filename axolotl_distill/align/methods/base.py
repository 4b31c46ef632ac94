"""A map from vocabulary to vocabulary, as records are made with it."""

from dataclasses import dataclass

import numpy as np

from axolotl_distill.align.pair import NONE, Pair


@dataclass(frozen=True)
class VocabularyMap:
    """At a place where both cut, the student's token s has the probability

        p(s) = Σ p(t)   over the teacher's tokens t with targets[t] = s

    and what has no target is in the tail. Elsewhere, and where `alike` asks for more, nothing is
    mapped: a record has the token that came, as `span` makes it, and the tail.

    targets  int64 [teacher's ids]; NONE for none
    alike    only where the token that came is mapped to the student's that came
    """

    targets: np.ndarray
    alike: bool = False


def same_bytes(pair: Pair) -> np.ndarray:
    """int64 [teacher's ids]: the student's token of the same bytes, and of special tokens that of
    the same role; NONE for none."""
    if pair.same:
        # Of two tokens of the same bytes each is itself.
        return np.arange(len(pair.teacher))
    ids = pair.student.by_bytes
    found = np.array([ids.get(raw, NONE) for raw in pair.teacher.bytes_of], np.int64)
    for number, end in pair.ends.items():
        found[number] = end
    return found
