"""Steps that choose among rows by an earlier step's score: best-of-n, top share."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator

from axolotl_distill.config.steps import BestOfNArgs, TopArgs
from axolotl_distill.filter.step import Verdict
from axolotl_distill.trajectories.journal import Row


def _score(row: Row, by: str) -> float:
    """Rows without a score come last."""
    score = row["scores"].get(by)
    return -math.inf if score is None else score


def _best(scores: list[float], places: list[int], keep: int) -> list[int]:
    """The `keep` places with the highest scores; of equals the first."""
    return sorted(places, key=lambda place: (-scores[place], place))[:keep]


def _verdicts(scores: list[float], kept: set[int], reason: str) -> Iterator[Verdict]:
    for place, score in enumerate(scores):
        if place in kept:
            yield Verdict(True)
        else:
            yield Verdict(False, reason, score=None if score == -math.inf else score)


class BestOfNStep:
    """Keeps min(keep, n) rows of a prompt with n."""

    name = "best_of_n"
    row_wise = False

    def __init__(self, args: BestOfNArgs):
        self.args = args

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
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


class TopStep:
    """Keeps ceil(share · rows) rows."""

    name = "top"
    row_wise = False

    def __init__(self, args: TopArgs):
        self.args = args

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        scores = [_score(row, self.args.by) for row in rows]
        count = math.ceil(self.args.share * len(scores) - 1e-9)
        kept = set(_best(scores, list(range(len(scores))), count))
        return _verdicts(scores, kept, f"not in the top {self.args.share:.0%}")
