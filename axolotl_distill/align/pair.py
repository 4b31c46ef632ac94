"""What two vocabularies have to do with each other: where the student would cut what the teacher
writes. Built once for a pair."""

from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from axolotl_distill.align.kept import kept
from axolotl_distill.align.pieces import Pieces, prefixed

NONE = -1
KEPT_CUTS = 1 << 16
# Of a token at whose end the student may not cut, this share of its occurrences at most goes on. A
# teacher that begins a word mostly ends it: had it more to write, it has a longer token for it.
# The guess of the vocabularies is worth so many occurrences.
MOST_OPEN, MOST_OPEN_WORD, GUESSED = 0.1, 0.5, 2.0
# A vocabulary begins with letters and signs, none of which is as frequent as Zipf's first.
FIRST_RANK = 3.0

Lists = tuple[np.ndarray, np.ndarray, np.ndarray]


class Going(NamedTuple):
    """Tokens that a teacher may write next, and the student's token that then comes first: int64
    [N] each. `firsts` is NONE where nobody can say."""

    tokens: np.ndarray
    firsts: np.ndarray


class Pair:
    """A teacher's tokens and a student's.

    teacher, student  their tokens as bytes
    ends              {teacher's special token: student's}, those of one role
    """

    def __init__(self, teacher: Pieces, student: Pieces, ends: Mapping[int, int] | None = None):
        self.teacher, self.student = teacher, student
        self.same = teacher.fingerprint == student.fingerprint
        self.ends = {i: i for i in teacher.special} if self.same else dict(ends or {})
        self.going = lru_cache(KEPT_CUTS)(self._going)
        self._joins = lru_cache(KEPT_CUTS)(self._joins_of)
        self._pairs = lru_cache(KEPT_CUTS)(self._no_pairs)

    @cached_property
    def firsts(self) -> np.ndarray:
        """int64 [teacher's ids]: the student's first token of each token's text; NONE for a part of
        a character that is no token of the student's, and for special tokens without a role."""
        starts, _, ids = self._cut_tokens
        found = np.full(len(self.teacher), NONE, np.int64)
        cut = np.flatnonzero(np.diff(starts))
        found[self.teacher.sorted[1][cut]] = ids[starts[cut]]
        for number, end in self.ends.items():
            found[number] = end
        return found

    @cached_property
    def goes_on(self) -> np.ndarray:
        """bool [teacher's ids]: whether the student has a token that begins with this one, where
        the teacher writes this one first: `3` with a student that has `35`."""
        found = np.zeros(len(self.teacher), bool)
        for parts in self._in_parts.values():
            found[parts[0]] = True
        return found

    @cached_property
    def in_parts(self) -> np.ndarray:
        """bool [student's ids]: whether the teacher writes it in several tokens."""
        found = np.zeros(len(self.student), bool)
        found[list(self._in_parts)] = True
        return found

    @cached_property
    def _in_parts(self) -> dict[int, list[int]]:
        """{student's id: the teacher's tokens}, of what the teacher writes in several."""
        numbers, starts, flat = kept(
            "parts", self.teacher, self.student, self._found_in_parts, self._are_parts
        )
        parts = np.split(flat, starts[1:-1]) if numbers.size else []
        return {int(number): each.tolist() for number, each in zip(numbers, parts, strict=True)}

    def _found_in_parts(self) -> Lists:
        texts = [_text(raw) for raw in self.student.bytes_of]
        own = self.student.cut(texts)
        found = {
            number: parts
            for number, (parts, reached) in enumerate(
                zip(self.teacher.cut(texts), own, strict=True)
            )
            if parts
            and len(parts) > 1
            and reached == [number]
            and sum(self.teacher.lengths[parts]) == self.student.lengths[number]
        }
        return np.array([*found], np.int64), *_flat(list(found.values()))

    def _are_parts(self, arrays: tuple[np.ndarray, ...]) -> bool:
        if len(arrays) != 3:
            return False
        numbers, starts, flat = arrays
        return _lists(starts, flat, len(numbers), len(self.teacher)) and _within(
            numbers, len(self.student)
        )

    @cached_property
    def expected_open(self) -> np.ndarray:
        """float64 [teacher's ids]: which share of a token's occurrences the student would go on
        with, by the vocabularies alone: of `3`, what `35`, `36`, … are together of it. Ids are
        taken to be in the order of merges, and a token's frequency as one over its place there
        (Zipf). Mostly too much."""
        found = np.zeros(len(self.teacher))
        for number, parts in self._in_parts.items():
            found[parts[0]] += (parts[0] + FIRST_RANK) / (number + FIRST_RANK)
        return np.minimum(found, 1.0)

    @cached_property
    def most_open(self) -> np.ndarray:
        """float64 [teacher's ids]: MOST_OPEN_WORD of tokens with a letter, else MOST_OPEN."""
        texts = [raw.decode(errors="ignore") for raw in self.teacher.bytes_of]
        words = np.array([any(char.isalpha() for char in text) for text in texts])
        return np.where(words, MOST_OPEN_WORD, MOST_OPEN)

    def doubtful(self, occurrences: np.ndarray, open_ends: np.ndarray) -> np.ndarray:
        """bool [student's ids]: those of which a next-token distribution of the teacher's does not
        say how likely they are, unless they come: `3` with a student that has `35`.

        occurrences, open_ends   int64 [teacher's ids]: how often a token came in the text, and how
                                 often the student did not cut at its end

        A token that may go on and seldom does (` to`, for ` today` is a token of both and ` tod`
        is not) is none of them; seldom is `most_open` of its occurrences, where what the
        vocabularies let expect counts as much as GUESSED of them.
        """
        share = (open_ends + GUESSED * self.expected_open) / (occurrences + GUESSED)
        whole = self.teacher.lengths == self.student.lengths[np.maximum(self.firsts, 0)]
        loose = self.goes_on & (share > self.most_open) & whole & (self.firsts != NONE)
        found = self.in_parts.copy()
        found[self.firsts[loose]] = True
        return found

    def breaks(self, cut: int, last: int, tokens: np.ndarray) -> np.ndarray:
        """bool [N], of tokens that the teacher may write after its token `last`: whether the
        student would then not have cut behind its token `cut`, which ends where `last` does.

        One token decides: what the teacher writes behind it is not looked at. A token that the
        teacher itself would not have begun here, had it cut the text, counts as a new beginning.
        """
        found = np.zeros(len(tokens), bool)
        if self.same:
            # Also between parts of characters, where no text could be cut to find out.
            return found
        known = self._pairs(cut, last)
        joining = np.flatnonzero(self._joins(cut)[self._first_bytes[tokens]])
        new = [token for token in tokens[joining].tolist() if token not in known]
        raw, before = self.student.bytes_of[cut], self.teacher.bytes_of[last]
        kept = self._keeps(raw, [self.teacher.bytes_of[token] for token in new])
        again = self.teacher.cut([_text(before + self.teacher.bytes_of[token]) for token in new])
        for token, keeps, parts in zip(new, kept, again, strict=True):
            known[token] = not keeps and (not parts or parts == [last, token])
        found[joining] = [known[token] for token in tokens[joining].tolist()]
        return found

    @staticmethod
    def _no_pairs(cut: int, last: int) -> dict[int, bool]:
        """What `breaks` found out so far."""
        return {}

    def _going(self, cut: int, written: bytes, fresh: bool, lead: bytes) -> Going:
        """The teacher's tokens that begin with `written`, and behind which the student cuts.

        cut    the student's token that ends with `written`; NONE at the beginning of a text
        fresh  the student cuts before `written` too
        lead   white space before the text on the student's side
        """
        first, behind = prefixed(self.teacher.sorted[0], written)
        tokens = self.teacher.sorted[1][first:behind]
        if fresh and cut != NONE:
            starts, ends, ids = self._cut_tokens
            flat = slice(starts[first], starts[behind])
            at = np.flatnonzero(ends[flat] == len(written))
            owners = np.searchsorted(starts, at + flat.start, side="right") - 1
            follows = np.minimum(at + flat.start + 1, len(ids) - 1)
            inside = at + flat.start + 1 < starts[owners + 1]
            firsts = np.where(inside, ids[follows], NONE)
            partial = np.flatnonzero(self._partial[first:behind])
            raws = [self.teacher.sorted[0][first + i][len(written) :] for i in partial]
            keeps = self._keeps(self.student.bytes_of[cut], raws)
            more = self.teacher.sorted[1][first + partial[keeps]]
            return Going(
                np.concatenate([self.teacher.sorted[1][owners], more]),
                np.concatenate([firsts, np.full(len(more), NONE)]),
            )
        rests = [raw[len(written) :] for raw in self.teacher.sorted[0][first:behind]]
        if cut == NONE:
            firsts = self._first_of([lead + rest for rest in rests])
            if not written:
                special = sorted(self.teacher.special)
                tokens = np.concatenate([tokens, np.array(special, np.int64)])
                firsts = np.concatenate([firsts, [self.ends.get(token, NONE) for token in special]])
            return Going(tokens, firsts.astype(np.int64))
        keeps = self._keeps(self.student.bytes_of[cut], rests)
        kept = [rest for rest, keep in zip(rests, keeps, strict=True) if keep]
        return Going(tokens[keeps], self._first_of(kept))

    def _keeps(self, raw: bytes, rests: list[bytes]) -> np.ndarray:
        """bool [rests]: whether the student cuts between `raw`, a token of its, and the rest."""
        kept = np.ones(len(rests), bool)
        joins = self._joins(self.student.by_bytes[raw])
        possible = [i for i, rest in enumerate(rests) if rest and joins[rest[0]]]
        texts = [_text(raw + rests[i]) for i in possible]
        for i, text, ids in zip(possible, texts, self.student.cut(texts), strict=True):
            if not text:
                # Parts of characters: a token that is all there is taken, whatever comes.
                ends = range(1, len(rests[i]) + 1)
                kept[i] = not any(raw + rests[i][:n] in self.student.by_bytes for n in ends)
            elif ids is not None:
                kept[i] = len(raw) in np.cumsum(self.student.lengths[ids])
        return kept

    @cached_property
    def _cut_tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How the student cuts each of the teacher's tokens, in the order of `teacher.sorted`:
        starts int64 [tokens + 1]; ends, in bytes, and ids, int64 [all of them]. A part of a
        character has none, unless it is a token of the student's."""
        starts, flat = kept("cuts", self.teacher, self.student, self._found_cuts, self._are_cuts)
        total = np.concatenate([[0], np.cumsum(self.student.lengths[flat])])
        return starts, total[1:] - np.repeat(total[starts[:-1]], np.diff(starts)), flat

    def _found_cuts(self) -> tuple[np.ndarray, np.ndarray]:
        raws = self.teacher.sorted[0]
        cuts: list[list[int]] = [[]] * len(raws)
        asked = {}
        for place, raw in enumerate(raws):
            if raw in self.student.by_bytes:
                cuts[place] = [self.student.by_bytes[raw]]
            elif text := _text(raw):
                asked[place] = text
        for place, ids in zip(asked, self.student.cut(list(asked.values())), strict=True):
            cuts[place] = ids or []
        return _flat(cuts)

    def _are_cuts(self, arrays: tuple[np.ndarray, ...]) -> bool:
        lists = len(self.teacher.sorted[0])
        return len(arrays) == 2 and _lists(*arrays, lists, len(self.student))

    @cached_property
    def _partial(self) -> np.ndarray:
        """bool, in the order of `teacher.sorted`: those that _cut_tokens does not cut."""
        return np.diff(self._cut_tokens[0]) == 0

    @cached_property
    def _first_bytes(self) -> np.ndarray:
        """int64 [teacher's ids]; 256 for special tokens."""
        return np.array([raw[0] if raw else 256 for raw in self.teacher.bytes_of])

    def _joins_of(self, cut: int) -> np.ndarray:
        """bool [257]: the bytes that may undo a cut behind `cut`: with one of them some token of
        the student's goes on that begins within it."""
        raw, found = self.student.bytes_of[cut], np.zeros(257, bool)
        for start in range(len(raw)):
            for byte in range(256):
                found[byte] = found[byte] or self._begins(raw[start:] + bytes([byte]))
        return found

    def _begins(self, raw: bytes) -> bool:
        """Whether some token of the student's begins with `raw`."""
        ordered = self.student.sorted[0]
        at = bisect_left(ordered, raw)
        return at < len(ordered) and ordered[at].startswith(raw)

    def _first_of(self, texts: list[bytes]) -> np.ndarray:
        """int64 [texts]: the student's first token of each; NONE where that cannot be said."""
        found = np.full(len(texts), NONE, np.int64)
        asked = {}
        for place, raw in enumerate(texts):
            number = self.student.by_bytes.get(raw)
            if number is not None:
                found[place] = number
            elif text := _text(raw):
                asked[place] = text
        for place, ids in zip(asked, self.student.cut(list(asked.values())), strict=True):
            if ids:
                found[place] = ids[0]
        return found


def _flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [lists + 1], where each begins, and all of them one after another."""
    starts = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
    return starts, np.array([number for one in lists for number in one], np.int64)


def _lists(starts: np.ndarray, flat: np.ndarray, count: int, size: int) -> bool:
    """Whether these are so many lists of ids below `size`."""
    return (
        starts.shape == (count + 1,)
        and starts[0] == 0
        and starts[-1] == flat.size
        and bool((np.diff(starts) >= 0).all())
        and _within(flat, size)
    )


def _within(ids: np.ndarray, size: int) -> bool:
    return not ids.size or bool(ids.min() >= 0 and ids.max() < size)


def _text(raw: bytes) -> str:
    """Nothing for a part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
