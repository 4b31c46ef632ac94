"""What one pass over a text shows of two tokenizers: where their cuts agree, and which special
tokens have one role."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from axolotl_distill.align.conversation import Segment
from axolotl_distill.align.pieces import Pieces
from axolotl_distill.align.spans import align


class Survey:
    """Counts over the answers that it was shown.

    occurrences, open_ends  int64 [teacher's ids], see Pair.doubtful
    ends                    {teacher's special token: student's}, where one stands for one
    spans                   {(teacher's tokens, student's tokens): how many spans have so many}
    """

    def __init__(self, teacher: Pieces, student: Pieces):
        self.teacher, self.student = teacher, student
        self.occurrences = np.zeros(len(teacher), np.int64)
        self.open_ends = np.zeros(len(teacher), np.int64)
        self.ends: dict[int, int] = {}
        self.spans: Counter[tuple[int, int]] = Counter()

    def add(
        self, answers: Sequence[Sequence[Segment]], theirs: Sequence[int], own: Sequence[int]
    ) -> None:
        """Raises ValueError where a special token of the teacher's stands for two of the
        student's."""
        for segment in (segment for answer in answers for segment in answer):
            tokens = np.asarray(theirs[slice(*segment.teacher)])
            others = np.asarray(own[slice(*segment.student)])
            if segment.special:
                self._add_end(tokens, others)
                continue
            ends = np.cumsum(self.teacher.lengths[tokens]) - len(segment.lead)
            cuts = np.cumsum(self.student.lengths[others]) - len(segment.student_lead)
            np.add.at(self.occurrences, tokens, 1)
            np.add.at(self.open_ends, tokens[~np.isin(ends, cuts)], 1)
            self._add_spans(np.diff(ends, prepend=0), np.diff(cuts, prepend=0))

    def _add_end(self, tokens: np.ndarray, others: np.ndarray) -> None:
        if len(tokens) != 1 or len(others) != 1:
            return
        there, here = int(tokens[0]), int(others[0])
        if self.ends.setdefault(there, here) != here:
            raise ValueError(
                f"the teacher's special token {there} stands for the student's "
                f"{self.ends[there]} elsewhere, and for {here} in it"
            )

    def _add_spans(self, theirs: np.ndarray, own: np.ndarray) -> None:
        # A token that is white space before the text, and nothing else, is of no span.
        spans = align(theirs[theirs > 0], own[own > 0])
        sizes = zip(np.diff(spans.teacher).tolist(), np.diff(spans.student).tolist(), strict=True)
        self.spans.update(sizes)
