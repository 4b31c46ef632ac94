"""Which tokens of a row are which in the other tokenizer's row of the same conversation.

Text is found by its bytes, and what is no text by its role: an end of a turn is the other's end of
that turn, whatever it is called and however many tokens it has. What templates write around the
answers (headers, BOS) is not learnt, and nobody compares it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from axolotl_distill.align.pieces import Pieces
from axolotl_distill.signal.batch import IGNORE

SPACE = b" \t\r\n"
SHOWN = 40

Part = tuple[int, int, bool]
"""(first token, behind the last one, whether it is special tokens)"""


@dataclass(frozen=True)
class Segment:
    """A part of an answer in both rows: text, or the special tokens of one role.

    teacher, student       (first token, behind the last one)
    lead, student_lead     white space before the text that only this side's template writes, or
                           that its tokenizer puts before every text
    """

    teacher: tuple[int, int]
    student: tuple[int, int]
    special: bool = False
    lead: bytes = b""
    student_lead: bytes = b""


def pair_rows(
    teacher_ids: Sequence[int],
    teacher_labels: Sequence[int],
    student_ids: Sequence[int],
    student_labels: Sequence[int],
    teacher: Pieces,
    student: Pieces,
) -> list[list[Segment]]:
    """The segments of each answer, an answer being what is learnt without a gap.

    Raises ValueError that says what differs: the number of answers, or a text.
    """
    theirs, own = _answers(teacher_labels), _answers(student_labels)
    if len(theirs) != len(own):
        raise ValueError(
            f"it has {len(own)} learnt parts as the student's template writes it and {len(theirs)} "
            "as the teacher's does"
        )
    return [
        _paired(
            _parts(teacher_ids, *there, teacher), _parts(student_ids, *here, student),
            teacher_ids, student_ids, teacher, student,
        )
        for there, here in zip(theirs, own, strict=True)
    ]  # fmt: skip


def _answers(labels: Sequence[int]) -> list[tuple[int, int]]:
    learnt = np.concatenate([[False], np.asarray(labels) != IGNORE, [False]])
    edges = np.flatnonzero(np.diff(learnt.astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _parts(ids: Sequence[int], start: int, stop: int, pieces: Pieces) -> list[Part]:
    found: list[Part] = []
    for at in range(start, stop):
        special = ids[at] in pieces.special
        if found and found[-1][2] == special:
            found[-1] = (found[-1][0], at + 1, special)
        else:
            found.append((at, at + 1, special))
    return found


def _paired(
    theirs: list[Part],
    own: list[Part],
    teacher_ids: Sequence[int],
    student_ids: Sequence[int],
    teacher: Pieces,
    student: Pieces,
) -> list[Segment]:
    # Axolotl learns an end of turn where it is the tokenizer's EOS, which it need not be.
    if own and own[-1][2] and not (theirs and theirs[-1][2]):
        at = behind = theirs[-1][1] if theirs else 0
        while behind < len(teacher_ids) and teacher_ids[behind] in teacher.special:
            behind += 1
        if at and behind > at:
            theirs = [*theirs, (at, at + 1, True)]
    elif theirs and theirs[-1][2] and not (own and own[-1][2]):
        theirs = theirs[:-1]
    if [part[2] for part in theirs] != [part[2] for part in own]:
        raise ValueError(
            "special tokens stand elsewhere in it as the student's template writes it "
            f"({_kinds(own)}) than as the teacher's does ({_kinds(theirs)})"
        )
    segments = []
    for (t0, t1, special), (s0, s1, _) in zip(theirs, own, strict=True):
        if special:
            segments.append(Segment((t0, t1), (s0, s1), special=True))
            continue
        texts = [
            b"".join(pieces.bytes_of[number] for number in ids[first:last])
            for pieces, ids, first, last in (
                (teacher, teacher_ids, t0, t1), (student, student_ids, s0, s1),
            )
        ]  # fmt: skip
        leads = _leads(*texts)
        if leads is None:
            raise ValueError(_apart(*texts))
        segments.append(Segment((t0, t1), (s0, s1), False, *leads))
    return segments


def _leads(theirs: bytes, own: bytes) -> tuple[bytes, bytes] | None:
    """The white space that one side has before the text; None where the texts differ."""
    extra = len(theirs) - len(own)
    if extra >= 0 and theirs.endswith(own) and not theirs[:extra].strip(SPACE):
        return theirs[:extra], b""
    if extra < 0 and own.endswith(theirs) and not own[:-extra].strip(SPACE):
        return b"", own[:-extra]
    # Each may have its own.
    there, here = theirs.lstrip(SPACE), own.lstrip(SPACE)
    if there and there == here:
        return theirs[: len(theirs) - len(there)], own[: len(own) - len(here)]
    return None


def _apart(theirs: bytes, own: bytes) -> str:
    pairs = enumerate(zip(theirs, own, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(theirs), len(own)))
    shown = [text[max(0, at - 10) : at + SHOWN].decode(errors="replace") for text in (own, theirs)]
    return (
        f"its text is not the same: from byte {at} on it is {shown[0]!r} to the student and "
        f"{shown[1]!r} to the teacher"
    )


def _kinds(parts: list[Part]) -> str:
    return ", ".join("special" if special else "text" for *_, special in parts) or "nothing"
