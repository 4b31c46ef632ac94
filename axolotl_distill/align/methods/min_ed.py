"""`min_ed` (MinED; FuseLLM, arXiv 2401.10491): a token that only the teacher has stands for the
student's that is written most like it.

Tokens of the same bytes are one. For every other one of the teacher's: the student's token with the
fewest edits (Levenshtein, in characters), the first in the order of ids among those, which is the
order of merges and so of frequency.

What is not as in the authors' code, and why. They compare names (`Ġ`, `▁`, escaped bytes); here
it is text. They take the nearest token however far; here one beyond FARTHEST edits, or with as many
edits as half of the longer one's characters, is no relative (`12` of `13`, one sign of another),
and the teacher's token stays in the tail. Of several teacher's tokens that come to one of the
student's they keep the likeliest; here they add up. They align the two rows by a DP over edit
distances and learn where it pairs tokens that end alike; both rows are the same bytes, so that the
places where both cut are known, and nothing is guessed. Elsewhere they learn the label as if the
teacher was sure of it; here the record is that of `span`.

Nothing is compared pair by pair. Two texts are one edit apart where one of these is equal, each but
the first with the place of what was taken out:

    t and s - i          one character more
    t - (i), s - (i)     another character

and two edits apart where these are, of which the last is one character more and one fewer:

    t and s - i - j      t - (i, j), s - (i, j)      t - (i), s - j - (i)      t - i, s - j

So hashes of all that can be taken out of the student's tokens are sorted once.
"""

from collections.abc import Iterator

import numpy as np

from axolotl_distill.align.kept import kept
from axolotl_distill.align.methods.base import VocabularyMap, same_bytes
from axolotl_distill.align.pair import NONE, Pair

FARTHEST = 2
# Characters; with more, all that can be taken out is too much.
LONGEST = 32
BASE = np.uint64(0x9E3779B97F4A7C15)
SALT = np.uint64(0xC2B2AE3D27D4EB4F)
NOBODY = np.iinfo(np.int64).max

Hashes = tuple[np.ndarray, np.ndarray]
"""(hashes uint64 [N], places of their texts int64 [N])"""


def build(pair: Pair) -> VocabularyMap:
    targets = same_bytes(pair)
    if pair.same:
        return VocabularyMap(targets)
    ids = np.array([*sorted(pair.student.by_bytes.values()), NONE], np.int64)
    (near,) = kept(
        "min_ed", pair.teacher, pair.student, lambda: (_near(pair),),
        lambda found: len(found) == 1 and found[0].shape == targets.shape
        and found[0].min() >= NONE and found[0].max() < len(ids) - 1,
    )  # fmt: skip
    return VocabularyMap(np.where(targets == NONE, ids[near], targets))


def _near(pair: Pair) -> np.ndarray:
    """int64 [teacher's ids]: the place of the nearest among the student's tokens in the order of
    ids, of what the student has not; NONE for none."""
    own = pair.student.by_bytes
    texts = {n: _text(raw) for n, raw in enumerate(pair.teacher.bytes_of) if raw not in own}
    rest = [n for n, text in texts.items() if text]
    found = np.full(len(pair.teacher), NONE)
    among = [_text(pair.student.bytes_of[n]) for n in sorted(own.values())]
    found[rest] = nearest([texts[n] for n in rest], among)
    return found


def nearest(texts: list[str], among: list[str]) -> np.ndarray:
    """int64 [texts]: the place in `among` of the text that is fewest edits away, the first of
    several; NONE where it is farther than FARTHEST, or has half of the longer's characters or more
    as edits. Equal ones are not looked for."""
    theirs, own = _Taken(texts), _Taken(among)
    best = np.full(len(texts), NOBODY)
    for kinds in (
        (("none", "one"), ("one", "none"), ("one at", "one at")),
        (
            ("none", "two"), ("two", "none"), ("two at", "two at"), ("one at", "two and at"),
            ("two and at", "one at"), ("one", "one"),
        ),
    ):  # fmt: skip
        edits = 1 if len(kinds) == 3 else 2
        open_ = best == NOBODY
        for mine, others in kinds:
            hashes, places = theirs.of(mine)
            here = open_[places]
            found, first = own.table(others)
            at = np.minimum(np.searchsorted(found, hashes[here]), max(0, len(found) - 1))
            if not len(found):
                continue
            hit = found[at] == hashes[here]
            owners, others_of = places[here][hit], first[at][hit]
            longer = np.maximum(theirs.lengths[owners], own.lengths[others_of])
            near = 2 * edits < longer
            np.minimum.at(best, owners[near], others_of[near])
    return np.where(best == NOBODY, NONE, best)


class _Taken:
    """Hashes of texts, and of what is left of them when characters are taken out."""

    def __init__(self, texts: list[str]):
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self.texts = texts
        self._found: dict[str, Hashes] = {}
        self._tables: dict[str, Hashes] = {}
        parts: dict[str, list[Hashes]] = {}
        for length in np.unique(self.lengths).tolist():
            if 0 < length <= LONGEST:
                places = np.flatnonzero(self.lengths == length)
                for kind, hashes in self._kinds(places, length):
                    owners = np.broadcast_to(places[:, None], hashes.shape)
                    parts.setdefault(kind, []).append((hashes.ravel(), owners.ravel()))
        for kind, columns in parts.items():
            hashes, owners = (np.concatenate(column) for column in zip(*columns, strict=True))
            self._found[kind] = hashes, owners

    def of(self, kind: str) -> Hashes:
        nothing = np.empty(0, np.uint64), np.empty(0, np.int64)
        return self._found.get(kind, nothing)

    def table(self, kind: str) -> Hashes:
        """The hashes in order, each once, and the first text that has it."""
        if kind not in self._tables:
            hashes, places = self.of(kind)
            order = np.lexsort((places, hashes))
            hashes, places = hashes[order], places[order]
            new = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
            self._tables[kind] = hashes[new], places[new]
        return self._tables[kind]

    def _kinds(self, places: np.ndarray, length: int) -> Iterator[tuple[str, np.ndarray]]:
        """(kind, uint64 [texts, ways])"""
        text = "".join(self.texts[place] for place in places)
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).reshape(-1, length)
        with np.errstate(over="ignore"):
            power = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(length, BASE)]))
            value = (codes.astype(np.uint64) + np.uint64(1)) * SALT
            # A sum over characters: what is behind one that is taken out moves by one power.
            terms = value * power[:length]
            moved = value * np.concatenate([np.zeros(1, np.uint64), power[: length - 1]])
            yield "none", terms.sum(1, keepdims=True)
            if length < 3:
                return
            whole = _before(terms)
            once = _before(moved)
            one = whole[:, :-1] + (once[:, -1:] - once[:, 1:])
            at = np.arange(1, length + 1, dtype=np.uint64)
            yield "one", one
            yield "one at", one + at * _mixed(1)
            if length < 5:
                return
            twice = _before(value * np.concatenate([np.zeros(2, np.uint64), power[: length - 2]]))
            i, j = np.triu_indices(length, 1)
            two = whole[:, i] + (once[:, j] - once[:, i + 1]) + (twice[:, -1:] - twice[:, j + 1])
            yield "two", two
            yield "two at", two + at[i] * _mixed(2) + at[j] * _mixed(3)
            # Where i is once j is out, and j once i is.
            yield (
                "two and at",
                np.concatenate([two + at[i] * _mixed(1), two + at[j - 1] * _mixed(1)], 1),
            )


def _before(terms: np.ndarray) -> np.ndarray:
    """[texts, length + 1]: sums of the first ones."""
    return np.concatenate([np.zeros((len(terms), 1), np.uint64), np.cumsum(terms, axis=1)], 1)


def _mixed(number: int) -> np.uint64:
    return np.uint64((0xD6E8FEB86659FD93 * (2 * number + 1)) % 2**64)


def _text(raw: bytes) -> str:
    """Nothing for a part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
