"""Scoring an answer with the scorer of the reasoning-gym dataset that its question is from.

Some scorers evaluate the answer as Python (`eval`, sympy's `parse_expr`): only in a process that
may not touch anything (`workers`).
"""

import functools
from collections.abc import Callable
from typing import Any

import reasoning_gym

from axolotl_distill.filter.verify.extract import NUMBER
from axolotl_distill.filter.verify.text import Scored, seen, without_stop

# Scorers that compare with a tuple, which JSON turned into a list.
BOARDS = {"arc_agi", "rearc"}


def score(found: list[str], entry: dict[str, Any], options: dict[str, Any]) -> Scored:
    """What the dataset's own `score_answer` gives, from 0 to 1."""
    dataset = options["dataset"]
    if dataset in BOARDS:
        board = tuple(tuple(line) for line in entry["metadata"]["output"])
        entry = {**entry, "metadata": {**entry["metadata"], "output": board}}
    answer = without_stop(found[-1])
    if not NUMBER.fullmatch(answer):
        answer = found[-1]  # to some tasks a full stop matters
    return float(_scorer(dataset)(answer, entry)), seen(found[-1:], [str(entry.get("answer"))])


@functools.cache
def _scorer(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    return reasoning_gym.get_score_answer_fn(dataset)
