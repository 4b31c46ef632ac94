"""Steps that choose among rows by an earlier step's score: best-of-n, top share."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeVar

from pydantic import Field

from axolotl_distill.config.block import Block
from axolotl_distill.filter.step import KEEP, Candidate, Step, Verdict, Where, registered


class BestOfNArgs(Block):
    """The best rows of every prompt."""

    by: str = Field(description="Name of an earlier step that scores.")
    keep: int = Field(1, ge=1, description="Rows a prompt.")


class TopArgs(Block):
    """The best rows of all."""

    by: str = Field(description="Name of an earlier step that scores.")
    share: float = Field(0.5, gt=0.0, le=1.0)


C = TypeVar("C", BestOfNArgs, TopArgs)


class _Chooser(Step[C]):
    @classmethod
    def where(cls, args: C) -> Where:
        return Where.HERE

    @classmethod
    def chooses_by(cls, args: C) -> str:
        return args.by


def _score(row: Candidate, by: str) -> float:
    """Rows without a score come last."""
    score = row["scores"].get(by)
    return -math.inf if score is None else score


def _best(scores: list[float], places: list[int], keep: int) -> list[int]:
    """The `keep` places with the highest scores; of equals the first."""
    return sorted(places, key=lambda place: (-scores[place], place))[:keep]


def _verdicts(scores: list[float], kept: set[int], reason: str) -> Iterator[Verdict]:
    for place, score in enumerate(scores):
        if place in kept:
            yield KEEP
        else:
            yield Verdict(False, reason, score=None if score == -math.inf else score)


@registered
class BestOfNStep(_Chooser[BestOfNArgs]):
    """Keeps min(keep, n) rows of a prompt with n."""

    kind = "best_of_n"
    Args = BestOfNArgs

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        scores: list[float] = []
        of_prompt: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            of_prompt[row["prompt_id"]].append(len(scores))
            scores.append(_score(row, self.args.by))
        kept = {
            place
            for places in of_prompt.values()
            for place in _best(scores, places, self.args.keep)
        }
        return _verdicts(scores, kept, f"not among the best {self.args.keep} of its prompt")


@registered
class TopStep(_Chooser[TopArgs]):
    """Keeps ceil(share · rows) rows."""

    kind = "top"
    Args = TopArgs

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        scores = [_score(row, self.args.by) for row in rows]
        count = math.ceil(self.args.share * len(scores) - 1e-9)
        kept = set(_best(scores, list(range(len(scores))), count))
        return _verdicts(scores, kept, f"not in the top {self.args.share:.0%}")
