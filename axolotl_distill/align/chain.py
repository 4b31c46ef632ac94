"""What a teacher's distributions over its tokens say of the student's tokens of the same text.

Write b for a place in the text where the student cuts, t_1 t_2 … for the teacher's tokens, and

    W(i) = p(t_1) · … · p(t_i | t_<i)       the teacher's probability of its first i tokens
    r(i, b)                                 the text from the end of t_i up to b

The text up to b, with a cut of the student's at b, is what the teacher writes with probability

    G(b) = Σ_i W(i) · Σ_u p(u | t_≤i)       i = 0 … all tokens that end at or before b

over the teacher's tokens u that begin with r(i, b), go on behind b (where r is empty every u does),
and leave the student its cut at b: were `3` its last token and u = `5`, it would have written `35`.
Then the student's next token s, which ends at b', comes with probability

    p(s | what came before) = G(b') / G(b)

This holds the three cases that one thinks of. Tokens alike: r is empty, and p is the teacher's own.
The teacher splits: the product of its pieces, times the share of what may follow that ends s there
(the boundary factor), over that of the token before. The student splits: the sum over all u that
begin with its bytes, then of these the share that goes on as it does. A row's probabilities
multiply to the teacher's probability of the text, as they must.

What is not exact. A teacher is taken to write text as its tokenizer cuts it, and other sequences of
the same bytes are left out; the sum over the last token is that of Phan et al., arXiv 2410.09303.
One u decides whether the student keeps its cut, and the student's tokens before b stay as they are,
whatever comes. A u that ends at b and did not come is taken to keep the cut: what follows it was
not asked. At most BACK tokens before b may be covered by a longer u.

Of the tokens that did not come, all u that begin one and the same token of the student's give its
probability; but where that token may also be had from several of the teacher's (Pair.doubtful) it
is left to the tail, for the teacher was not asked what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from axolotl_distill.align.conversation import Segment
from axolotl_distill.align.pair import NONE, Going, Pair

BACK = 8
Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Cut:
    """A place b where the student cuts, as the terms of G(b).

    at      the i for which r is empty, as the place of t_(i+1) among the row's ids; NONE if none is
    ending  (the student's token, the teacher's token) that end at b, where some u may undo the cut
    parts   (place of t_(i+1), tokens u and the student's first token behind b) for other i
    given   nothing is asked here: the student's next token follows from the one before
    """

    at: int
    ending: tuple[int, int] | None = None
    parts: Sequence[tuple[int, Going]] = ()
    given: bool = False


@dataclass(frozen=True)
class Chain:
    """An answer: cuts[k] lies before the student's token at places[k] of its row, and the last one
    behind all of them. `first` and `behind`: which of the teacher's ids it is about."""

    cuts: list[Cut]
    places: list[int]
    first: int
    behind: int


def chain(segments: Sequence[Segment], teacher_ids: Ids, student_ids: Ids, pair: Pair) -> Chain:
    """The cuts of an answer. Raises ValueError where the student cuts the white space before a text
    that only its template writes."""
    cuts: list[Cut] = []
    places: list[int] = []
    end = Cut(segments[0].teacher[0])
    for segment in segments:
        if segment.special:
            count = segment.student[1] - segment.student[0]
            new = [end, *(Cut(segment.teacher[1], given=True) for _ in range(count - 1))]
            end = Cut(segment.teacher[1])
        else:
            new = _text_cuts(segment, teacher_ids, student_ids, pair)
            end = new.pop()
        cuts += new
        places += range(*segment.student)
    return Chain([*cuts, end], places, segments[0].teacher[0], segments[-1].teacher[1])


def _text_cuts(segment: Segment, teacher_ids: Ids, student_ids: Ids, pair: Pair) -> list[Cut]:
    start = segment.teacher[0]
    theirs = [int(token) for token in teacher_ids[slice(*segment.teacher)]]
    own = [int(token) for token in student_ids[slice(*segment.student)]]
    ends = np.concatenate([[0], np.cumsum(pair.teacher.lengths[theirs])]) - len(segment.lead)
    text = b"".join(pair.teacher.bytes_of[token] for token in theirs)
    reached = np.cumsum(pair.student.lengths[own]) - len(segment.student_lead)
    if segment.lead or segment.student_lead:
        going = pair.going(NONE, segment.lead, False, segment.student_lead)
        cuts = [Cut(NONE, parts=[(start, _with(going, theirs[0]))])]
    else:
        cuts = [Cut(start)]
    begins = {0, *reached.tolist()} if not segment.lead else set(reached.tolist())
    for cut, at in zip(own, reached.tolist(), strict=True):
        if at < 0:
            raise ValueError(
                "the student cuts the white space before its text into several tokens, and the "
                "teacher's template has none there"
            )
        last = int(np.searchsorted(ends, at, side="right")) - 1
        whole = last > 0 and ends[last] == at
        parts = []
        for before in range(last - whole, max(-1, last - BACK), -1):
            written = text[ends[before] - ends[0] : at - ends[0]]
            going = pair.going(cut, written, int(ends[before]) in begins, b"")
            if whole or before < last:
                # Those that end here were counted where they end.
                going = _longer(going, written, pair)
            else:
                going = _with(going, theirs[before])
            if going.tokens.size:
                parts.append((start + before, going))
        if whole:
            cuts.append(Cut(start + last, (cut, theirs[last - 1]), parts))
        else:
            cuts.append(Cut(NONE, None, parts))
    return cuts


def _with(going: Going, token: int) -> Going:
    """`token`, which came, is among them."""
    if token in going.tokens:
        return going
    return Going(np.append(going.tokens, token), np.append(going.firsts, NONE))


def _longer(going: Going, written: bytes, pair: Pair) -> Going:
    longer = pair.teacher.lengths[going.tokens] > len(written)
    return going if longer.all() else Going(going.tokens[longer], going.firsts[longer])
