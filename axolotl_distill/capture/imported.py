"""Rows whose log-probabilities are there already, for the capture loop."""

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from jinja2 import TemplateError

from axolotl_distill.capture.layouts import Context, Example, Layout
from axolotl_distill.capture.source import Row, SourceSummary, summarise
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.store import RecordBatch
from axolotl_distill.teachers.top import top_logprobs

# By how much a neighbour must fit better before the rows are taken to be shifted.
SHIFTED = 0.1
# A text that the teacher wrote holds a token of each list as often as the list holds probability;
# one that it only read less often. Below this share of that it is another text. The noise of a
# share of n tokens is at most half of 1/sqrt(n), and three times that is given.
LEAST_OF_MASS = 0.5
NOISE = 1.5


@dataclass
class Survey:
    """What one pass over all rows found.

    source        tokens with log-probabilities are the supervised ones
    k             most entries of a token
    own           share of them whose list holds the token that came; `before` and `after`: the
                  token before and the one after it
    mass          sum over all lists of the probability that they hold
    other_prompt  rows whose teacher saw a prompt of another length
    """

    source: SourceSummary = field(init=False)
    k: int = 0
    own: float = 0.0
    before: float = 0.0
    after: float = 0.0
    mass: float = 0.0
    other_prompt: int = 0

    def summary(self) -> str:
        return (
            f"{self.source.supervised:,} tokens with up to {self.k} log-probabilities; the token "
            f"that came is among them in {self.own:.1%}"
        )

    def doubt(self) -> str:
        """What should worry somebody, or nothing."""
        if not self.other_prompt:
            return ""
        return (
            f"the teacher of {self.other_prompt} rows saw a prompt of another length than the "
            "config's chat template makes, so it answered to something else than the student will "
            "be asked."
        )


class ImportedRows(Sequence[Row]):
    """Rows of a source in one layout, as the capture loop takes them, with what was expected at
    every supervised token. Rows longer than `longest` supervise nothing."""

    def __init__(
        self, rows: Sequence[Row], layout: Layout, context: Context, path: str, longest: int
    ):
        self.rows, self.layout, self.context = rows, layout, context
        self.path, self.longest = path, longest
        self._doubtful: int | None = None
        self._places = [
            (index, number) for index in range(len(rows)) for number in range(self._count(index))
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        return self._row(self.example(index))

    def example(self, index: int) -> Example:
        """Raises CaptureError, naming the row."""
        row, number = self._places[index]
        tokens = self.context.tokens
        try:
            example = self.layout.read(self.rows[row], number, self.context)
            tokens.check_known(example.input_ids)
            if self._doubtful is None and (tokens.doubtful or tokens.guessed):
                self._doubtful = row
            return example
        except TemplateError as error:
            refused = f"the config's chat template refuses its messages: {error}"
            raise self._unreadable(row, refused) from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._unreadable(row, error) from error

    def survey(self) -> Survey:
        """Reads every row once. Raises CaptureError for one that cannot be read, for names of
        tokens that may be two, where no token has log-probabilities, and when these fit a
        neighbouring token better than their own, or not even that as often as they say
        themselves."""
        found = Survey()
        counts = np.zeros(3)
        found.source = summarise(self._surveyed(found, counts), len(self))
        if not found.source.supervised:
            raise CaptureError(
                f"{self.path} has no token with log-probabilities in rows of at most "
                f"`sequence_len: {self.longest}` tokens. Were they asked for?"
            )
        if self._doubtful is not None:
            try:
                self.context.tokens.check_names()
            except ValueError as error:
                raise self._unreadable(self._doubtful, error) from error
        shares = counts / found.source.supervised
        found.before, found.own, found.after = shares.tolist()
        for where, share in (("before", found.before), ("after", found.after)):
            if share > found.own + SHIFTED:
                raise CaptureError(
                    f"{self.path}: the log-probabilities hold the token {where} their own in "
                    f"{share:.0%} of places, and their own in {found.own:.0%}: they are shifted by "
                    "one. Look at how they were collected; every list belongs at the place of the "
                    "token that it is about."
                )
        mass = found.mass / found.source.supervised
        noise = NOISE / math.sqrt(found.source.supervised)
        if found.own + noise < LEAST_OF_MASS * mass:
            raise CaptureError(
                f"{self.path}: the lists hold {mass:.0%} of the probability on average, and the "
                f"token that came in {found.own:.1%} of places, where about as many are to be "
                "expected. They are about another text, or another tokenizer's ids. Look at how "
                "they were collected."
            )
        return found

    def _surveyed(self, found: Survey, counts: np.ndarray) -> Iterator[Row]:
        for index in range(len(self)):
            example = self.example(index)
            row = self._row(example)
            if any(label != IGNORE for label in row["labels"]):
                found.k = max(found.k, *(len(pairs) for pairs in row["expected"]))
                counts += _hits(example)
                found.mass += sum(
                    math.exp(min(0.0, logprob))
                    for pairs in row["expected"]
                    for _, logprob in pairs
                    if logprob is not None and not math.isnan(logprob)
                )
                starts = next(t for t, pairs in enumerate(example.expected) if pairs)
                seen = example.prompt_tokens
                found.other_prompt += seen is not None and seen != starts
            yield row

    def _row(self, example: Example) -> Row:
        fits = len(example.input_ids) <= self.longest
        # Nothing predicts the first token.
        labels = [
            token if at and found and fits else IGNORE
            for at, (token, found) in enumerate(
                zip(example.input_ids, example.expected, strict=True)
            )
        ]
        expected = [
            found for label, found in zip(labels, example.expected, strict=True) if label != IGNORE
        ]
        return {"input_ids": example.input_ids, "labels": labels, "expected": expected}

    def _count(self, index: int) -> int:
        if self.layout.count is None:
            return 1
        try:
            return self.layout.count(self.rows[index])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._unreadable(index, error) from error

    def _unreadable(self, row: int, error: Exception | str) -> CaptureError:
        said = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else error
        return CaptureError(f"{self.path}, row {row + 1} cannot be imported: {said}.")


class ImportedSource:
    """The records of ImportedRows."""

    # Nothing is gained by more, and a row of 8,192 tokens with 20 alternatives takes megabytes.
    window_rows = 1
    workers = 1
    teacher_seconds = 0.0

    def __init__(self, k: int, temperatures: Sequence[float], vocab_size: int):
        self.k, self.temperatures, self.vocab_size = k, temperatures, vocab_size

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises CaptureError for numbers that are no log-probabilities."""
        for index in wanted:
            try:
                top = top_logprobs(rows[index]["expected"], k=self.k, vocab_size=self.vocab_size)
            except ValueError as error:
                raise CaptureError(f"row {index + 1} cannot be imported: {error}.") from error
            yield (
                index,
                records_from_top(top, temperatures=self.temperatures, vocab_size=self.vocab_size),
            )


def _hits(example: Example) -> np.ndarray:
    """How many lists hold the token before theirs, their own, and the one after."""
    ids, found = example.input_ids, np.zeros(3)
    for place, pairs in enumerate(example.expected):
        held = {token for token, _ in pairs or ()}
        for shift in (-1, 0, 1):
            if held and 0 <= place + shift < len(ids):
                found[shift + 1] += ids[place + shift] in held
    return found
