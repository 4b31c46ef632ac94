"""What is true of the student's next token, by sampling: the teacher writes on, the student cuts
what it wrote, and the first token is counted. Nothing of align/chain.py is used, so that it can be
held to this."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distill_kernels import DenseLogits

from axolotl_distill.align import Pair, pair_rows
from axolotl_distill.align.methods import VocabularyMap
from axolotl_distill.align.pair import NONE
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS, CrossSource
from axolotl_distill.capture.source import Row
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.signal.signal import Want
from axolotl_distill.store import RecordBatch, encoding
from axolotl_distill.store.counts import LEVEL, agreement
from axolotl_distill.teachers.base import Teacher

# A sample is long enough when so many of the student's tokens follow the prompt, or the teacher
# wrote so many: what comes later does not move the first cut.
DECIDED, DEEPEST = 3, 6
AT_ONCE = 64
SPAN: Mapping[str, VocabularyMap | None] = {"span": None}


@dataclass(frozen=True)
class Prompt:
    """What a teacher writes on from: a text that both cut at its end, and what each has before it.

    before, student_before   ids before that text
    theirs, own              the text; at least one token of each
    """

    before: list[int]
    theirs: list[int]
    student_before: list[int]
    own: list[int]

    def continued(self, written: str, pair: Pair) -> Row:
        """The row of both with `written` behind the text, which each cuts as it does."""
        row: Row = {}
        for pieces, before, ids, ids_key, labels_key in (
            (pair.teacher, self.before, self.theirs, TEACHER_IDS, TEACHER_LABELS),
            (pair.student, self.student_before, self.own, "input_ids", "labels"),
        ):
            text = b"".join(pieces.bytes_of[i] for i in ids).decode() + written
            cut = pieces.cut([text])[0] or []
            row[ids_key] = [*before, *cut]
            row[labels_key] = [*[IGNORE] * len(before), *cut]
        return row


class Oracle:
    """A teacher, loaded here, and a pair of tokenizers.

    methods  {name: its map}, of those whose records are looked at; None is `span`
    """

    def __init__(
        self,
        teacher: Teacher,
        pair: Pair,
        survey: Survey,
        methods: Mapping[str, VocabularyMap | None] = SPAN,
        seed: int = 0,
    ):
        self.teacher, self.pair, self.methods = teacher, pair, methods
        self.doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
        self.rng = np.random.default_rng(seed)

    def row(self, text: str) -> Row:
        """A text as a row of both, all of it learnt. Raises CaptureError for one that does not
        come back from the tokens."""
        return plain_row(text, self.pair)

    def records(self, row: Row, k: int | None = None, method: str = "span") -> RecordBatch:
        """Of every token of a row, with all entries that there are."""
        source = CrossSource(
            self.teacher,
            self.pair,
            self.doubtful,
            k=k or len(self.pair.student),
            batch_tokens=1,
            mapping=self.methods[method],
        )
        ((_, records),) = source.records({0: row}, {0})
        return records

    def masses(self, row: Row, method: str = "span") -> np.ndarray:
        """float64 [tokens]: the share of the teacher's probability that is not in the tail, with
        every entry kept."""
        return 1.0 - np.exp(encoding.decode_tail(self.records(row, method=method).tail[:, 0]))

    def compare(self, text: str, samples: int) -> dict[str, Any]:
        """As compare_at, behind a text without roles."""
        row = self.row(text)
        (before, *theirs), (first, *own) = row[TEACHER_IDS], row["input_ids"]
        return {"prompt": text, **self.compare_at(Prompt([before], theirs, [first], own), samples)}

    def compare_at(self, prompt: Prompt, samples: int) -> dict[str, Any]:
        """One token that may follow `prompt`: its share (`oracle`, with its standard `error`) of
        those `counted`, its probability in the record of each method, and how well both agree
        (`p_values`, see store/counts.py). Half of the samples choose the token, the other half are
        counted. Raises CaptureError where too few of them can be."""
        continued = self._sample(prompt, samples)
        half = len(continued) // 2
        if half < 2:
            raise CaptureError(
                f"Of {samples} samples after {self._spell(prompt.theirs)[-40:]!r} the student cut "
                f"{len(continued)} at its end: too few to count. Use more `--samples`."
            )
        seen = [token for _, token in continued]
        spelt = self.pair.student.bytes_of
        texts = [s for s in seen[:half] if s != NONE]
        numerals = [s for s in texts if spelt[s].strip()[:1].isdigit()]
        if not texts:
            raise CaptureError(
                f"The teacher writes nothing after {self._spell(prompt.theirs)[-40:]!r}: it ends "
                "there."
            )
        (token, _), *_ = Counter(numerals or texts).most_common(1)
        counted = seen[half:]
        count = counted.count(token)
        share = count / len(counted)
        written, _ = continued[seen.index(token)]
        row = prompt.continued(written, self.pair)
        said = {name: self._recorded(row, len(prompt.own), name) for name in self.methods}
        rounding = encoding.logprob_rounding(len(self.pair.student))
        return {
            "token": self.pair.student.bytes_of[token].decode(errors="replace"),
            "oracle": share,
            # For the eye. Of n samples, with one more of each kind: 0 and 1 have noise too.
            "error": float(np.sqrt((share * (1 - share) + 1 / (half + 2)) / (half + 2))),
            "counted": len(counted),
            **said,
            "p_values": {
                name: agreement(count, len(counted), probability, rounding)
                for name, probability in said.items()
            },
        }

    def _recorded(self, row: Row, number: int, method: str) -> float:
        """What the record of the learnt token `number` says of it."""
        # With one entry it is that of the token that came.
        records = self.records(row, 1, method)
        _, logprobs = encoding.decode_logprobs(records.entries, len(self.pair.student))
        return float(np.exp(logprobs[number]))

    def _sample(self, prompt: Prompt, samples: int) -> list[tuple[str, int]]:
        """(text, the student's first token of it) of what the teacher writes on; NONE where it ends
        at once. Left out is that behind which the student does not cut at the prompt's end, and
        what ends amid a character. In random order.

        The prompt's last token is drawn too, among those that begin with it and leave the student's
        cut behind it: a teacher that has ` the` writes a lone space before little else than
        numerals, but a student may cut there before signs, too.
        """
        *head, last = [*prompt.before, *prompt.theirs]
        own = prompt.own
        given = self.pair.teacher.bytes_of[last]
        # As the student has it, white space of its template too.
        text = self.pair.student.spell(own)
        text = text[: len(text) - len(given)]
        found: Counter[tuple[str, int]] = Counter()
        weights = np.zeros(len(self.pair.teacher))
        begins = self.pair.teacher.beginning(given)
        weights[begins] = self._probs([head])[0][begins]
        first: list[tuple[int, int]] = []
        # Those that undo the cut are drawn again, without them.
        while (missing := samples - sum(count for _, count in first)) and weights.any():
            for token, count in self._drawn(weights, missing):
                if self._may_follow(text, self.pair.teacher.bytes_of[token], own):
                    first.append((token, count))
                else:
                    weights[token] = 0.0
        following: dict[tuple[int, ...], int] = defaultdict(int)
        for token, count in first:
            following[(token,)] += count
        while following:
            waiting: dict[tuple[int, ...], int] = {}
            for tokens, count in following.items():
                ended = tokens[-1] in self.pair.teacher.special
                raw = self._spell(list(tokens))
                ids = None if not _whole(text + raw) else self._cut(text + raw)
                long = len(tokens) > DEEPEST or (ids and len(ids) >= len(own) + DECIDED)
                if not ended and not long:
                    waiting[tokens] = count
                elif ids and ids[: len(own)] == own:
                    found[raw[len(given) :].decode(), (*ids, NONE)[len(own)]] += count
            following = defaultdict(int)
            # Rows of one length: all have as many tokens.
            written = list(waiting)
            for start in range(0, len(written), AT_ONCE):
                batch = written[start : start + AT_ONCE]
                rows = self._probs([[*head, *tokens] for tokens in batch])
                for tokens, row in zip(batch, rows, strict=True):
                    for token, count in self._drawn(row, waiting[tokens]):
                        following[(*tokens, token)] += count
        order = list(found.elements())
        return [order[place] for place in self.rng.permutation(len(order))]

    def _may_follow(self, text: bytes, raw: bytes, own: list[int]) -> bool:
        return not _whole(text + raw) or self._cut(text + raw)[: len(own)] == own

    def _drawn(self, weights: np.ndarray, count: int) -> list[tuple[int, int]]:
        """(token, how often it came), of those that did."""
        drawn = self.rng.multinomial(count, weights / weights.sum())
        return [(int(token), int(drawn[token])) for token in np.flatnonzero(drawn)]

    def _probs(self, rows: list[list[int]]) -> np.ndarray:
        """float64 [rows, teacher's ids], of what follows each; the rows are of one length."""
        last = np.array([len(rows[0]) - 1])
        numbered, positions = dict(enumerate(rows)), dict.fromkeys(range(len(rows)), last)
        found = {}
        for number, _, signal in self.teacher.grade(numbered, positions, Want()):
            assert isinstance(signal.distribution, DenseLogits), "a model that is loaded here"
            found[number] = signal.distribution.logits[0].double().softmax(-1)
        return np.stack([found[number].cpu().numpy() for number in range(len(rows))])

    def _cut(self, raw: bytes) -> list[int]:
        return self.pair.student.cut([raw.decode()])[0] or []

    def _spell(self, tokens: list[int]) -> bytes:
        return b"".join(self.pair.teacher.bytes_of[token] for token in tokens)


def held(found: Sequence[Mapping[str, Any]], method: str) -> dict[str, float]:
    """Of what compare_at says of places: the share of them where what was counted is `within` what
    a method's record may give (at LEVEL), and the mean `error`, noise of counting included."""
    off = [abs(one[method] - one["oracle"]) for one in found]
    within = [one["p_values"][method] > LEVEL for one in found]
    return {"within": float(np.mean(within)), "error": float(np.mean(off))}


def plain_row(text: str, pair: Pair) -> Row:
    """A text without roles as a row of both, all of it learnt, behind one token that each begins
    with. Raises CaptureError for one that does not come back from the tokens."""
    row: Row = {}
    for pieces, ids_key, labels_key in (
        (pair.teacher, TEACHER_IDS, TEACHER_LABELS), (pair.student, "input_ids", "labels"),
    ):  # fmt: skip
        (ids,) = pieces.cut([text])
        if not ids or b"".join(pieces.bytes_of[i] for i in ids) != text.encode():
            raise CaptureError(
                f"The text {text[:40]!r}… does not come back from the tokens of {pieces.name}: its "
                "tokenizer changes it. Normalise it (NFC) first."
            )
        first = pieces.tokenizer.bos_token_id
        first = pieces.tokenizer.eos_token_id if first is None else first
        row |= {ids_key: [first or 0, *ids], labels_key: [IGNORE, *ids]}
    return row


def survey_of(rows: list[Row], pair: Pair) -> Survey:
    """Of rows that plain_row made."""
    survey = Survey(pair.teacher, pair.student)
    for row in rows:
        theirs, own = row[TEACHER_IDS], row["input_ids"]
        answers = pair_rows(
            theirs, row[TEACHER_LABELS], own, row["labels"], pair.teacher, pair.student
        )
        survey.add(answers, theirs, own)
    return survey


def _whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
