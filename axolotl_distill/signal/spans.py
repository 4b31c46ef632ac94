"""What a teacher says of its own tokens, beside the student's positions of the same text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axolotl_distill.align import Pieces, Segment, pair_rows
from axolotl_distill.align.survey import Survey
from axolotl_distill.signal.batch import OTHER_IDS
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.paired import PairedRow, paired_rows
from axolotl_distill.signal.signal import Pairs, Signal

Span = tuple[tuple[int, int], tuple[int, int]]
"""(first token, behind the last one) of the student's row and of the teacher's"""


@dataclass
class PairedSignal(LiveSignal):
    """A SignalSource whose distributions are the teacher's own, at its own positions.

    theirs, own  the tokens of both
    in_order     the k-th token of an answer goes with the k-th of the other's, and what is left of
                 the longer one with none; else tokens go together that cover the same bytes
    """

    theirs: Pieces | None = None
    own: Pieces | None = None
    in_order: bool = False

    def settle(self, survey: Survey) -> None:
        """As SpanSignal has it; it needs no more than the tokens."""

    def _signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        place = np.full(inputs["input_ids"].numel(), -1)
        # The first row may be one that predicts nothing, and stand for another's position.
        place[rows.cpu().numpy()] = np.arange(rows.numel())
        texts, asked, there, tokens = {}, {}, [], []
        student, teacher, ends = [], [], []
        found = paired_rows(columns, inputs)
        count = 0
        for number, row in found.items():
            answers = self._answers(row)
            if not answers:
                continue
            last = max(spans[-1][1][1] for spans in answers)
            begin = min(spans[0][1][0] for spans in answers)
            ids = row.texts[OTHER_IDS.name]
            texts[number], asked[number] = ids[:last].tolist(), np.arange(begin - 1, last - 1)
            there.append(row.there[begin - 1 : last - 1])
            tokens.append(ids[begin:last])
            for spans in answers:
                for (s0, s1), (t0, t1) in spans:
                    first, behind = place[row.at[[s0 - 1, s1 - 2]]]
                    student.append((first, behind + 1))
                    teacher.append((count + t0 - begin, count + t1 - begin))
                ends += [False] * (len(spans) - 1) + [True]
            count += last - begin
        parts = []
        sizes = {number: len(text) for number, text in texts.items()}
        for group in self._groups(sizes, place.size):
            graded = self.teacher.grade(
                {number: texts[number] for number in group},
                {number: asked[number] for number in group},
                self.want,
            )
            for number, part, said in graded:
                parts.append((found[number].there[asked[number][part]], said))
        at = torch.from_numpy(np.concatenate(there)) if there else torch.zeros(0, dtype=torch.int64)
        signal = self._put_back(parts, at.to(rows.device), columns[OTHER_IDS.name].numel())
        written = np.concatenate(tokens) if tokens else np.empty(0, np.int64)
        return replace(
            signal,
            pairs=Pairs(
                np.array(student, np.int64).reshape(-1, 2),
                np.array(teacher, np.int64).reshape(-1, 2),
                np.array(ends, bool),
                torch.from_numpy(written).to(rows.device),
            ),
        )

    def _answers(self, row: PairedRow) -> list[list[Span]]:
        assert self.theirs is not None and self.own is not None
        theirs, own = row.texts[OTHER_IDS.name], row.texts["input_ids"]
        answers = pair_rows(
            theirs, row.texts["teacher_labels"], own, row.texts["labels"], self.theirs, self.own
        )
        made = []
        for segments in answers:
            spans = (
                in_order(segments)
                if self.in_order
                else by_bytes(segments, theirs, own, self.theirs, self.own)
            )
            # Nothing predicts the first token of a row.
            if spans := [span for span in spans if span[0][0] > 0 and span[1][0] > 0]:
                made.append(spans)
        return made


def in_order(segments: Sequence[Segment]) -> list[Span]:
    """The tokens of an answer one by one, as many as both have."""
    own = range(segments[0].student[0], segments[-1].student[1])
    theirs = range(segments[0].teacher[0], segments[-1].teacher[1])
    return [((s, s + 1), (t, t + 1)) for s, t in zip(own, theirs, strict=False)]


def by_bytes(
    segments: Sequence[Segment],
    theirs: np.ndarray,
    own: np.ndarray,
    teacher: Pieces,
    student: Pieces,
) -> list[Span]:
    """The smallest spans of an answer that both bound; special tokens of one role are one. White
    space before the text that only one side's template writes is of none."""
    found: list[Span] = []
    for segment in segments:
        (s0, s1), (t0, t1) = segment.student, segment.teacher
        if segment.special:
            found.append(((s0, s1), (t0, t1)))
            continue
        here = np.cumsum(student.lengths[own[s0:s1]]) - len(segment.student_lead)
        there = np.cumsum(teacher.lengths[theirs[t0:t1]]) - len(segment.lead)
        _, ours, others = np.intersect1d(
            here[here > 0], there[there > 0], assume_unique=True, return_indices=True
        )
        ours, others = ours + (here <= 0).sum() + 1, others + (there <= 0).sum() + 1
        left, right = int((here <= 0).sum()), int((there <= 0).sum())
        for s, t in zip(ours.tolist(), others.tolist(), strict=True):
            found.append(((s0 + left, s0 + s), (t0 + right, t0 + t)))
            left, right = s, t
    return found
