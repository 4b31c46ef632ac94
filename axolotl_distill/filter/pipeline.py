"""Runs the steps over rows that stay on disk; in memory is only what was said of each row."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from axolotl_distill.errors import FilterError
from axolotl_distill.filter.executor import Executor, StepPlan
from axolotl_distill.filter.rows import Trajectories
from axolotl_distill.filter.step import Candidate, Verdict

DETAIL_CHARS = 1000
ROWS = "rows"  # the name of what is put aside before any step


class Dropped(NamedTuple):
    step: str
    reason: str
    detail: str
    score: float | None


class StepCount(NamedTuple):
    """What a step did: rows in and kept, and how many it dropped for which reason."""

    name: str
    kind: str
    rows: int
    kept: int
    reasons: dict[str, int]

    @property
    def dropped(self) -> int:
        return self.rows - self.kept

    @property
    def share(self) -> float:
        """Of its rows, the dropped."""
        return self.dropped / max(1, self.rows)


class Pipeline:
    """Judges the rows of `source`, `count` of them, step by step.

    Every step reads the files again and sees the rows that are left, with the scores of the steps
    before it. `scratch` is a folder for the details of dropped rows.
    """

    def __init__(self, source: Trajectories, count: int, scratch: Path):
        self.source, self.count, self.scratch = source, count, scratch
        self.counts: list[StepCount] = []
        self._dropped_by = np.full(count, -1, np.int16)
        self._reason = np.zeros(count, np.int32)
        self._reasons: dict[str, int] = {}
        self._scores: dict[str, np.ndarray] = {}

    @property
    def kept(self) -> np.ndarray:
        """bool [count]"""
        return self._dropped_by < 0

    @property
    def scored(self) -> list[str]:
        """Names of the steps that gave scores to rows that are left."""
        left = self.kept
        return [name for name, values in self._scores.items() if not np.isnan(values[left]).all()]

    def put_aside(self, faults: Mapping[int, tuple[str, str]]) -> StepCount:
        """Drop rows that no step can judge: (reason, detail) by their place."""
        step, rows = len(self.counts), int(self.kept.sum())
        with self._details(step).open("w") as details:
            for place, (reason, detail) in sorted(faults.items()):
                self._drop(step, place, reason, detail, details)
        self._scores[ROWS] = np.full(self.count, np.nan)
        reasons = Counter(reason for reason, _ in faults.values())
        count = StepCount(ROWS, ROWS, rows, rows - len(faults), dict(reasons.most_common()))
        self.counts.append(count)
        return count

    def run(
        self, plan: StepPlan, executor: Executor, seen: Callable[[], Any] = lambda: None
    ) -> StepCount:
        """One step over what is left; `seen` is called after every row."""
        places = np.flatnonzero(self.kept)
        scores = np.full(self.count, np.nan)
        reasons: Counter[str] = Counter()
        step = len(self.counts)
        verdicts = executor(plan, self.rows())
        with self._details(step).open("w") as details:
            for place in places:
                verdict = next(verdicts, None)
                if not isinstance(verdict, Verdict):
                    raise FilterError(f"Step {plan.name} judged fewer rows than it was given.")
                if verdict.score is not None:
                    scores[place] = verdict.score
                if not verdict.keep:
                    reasons[verdict.reason] += 1
                    self._drop(step, place, verdict.reason, verdict.detail, details)
                seen()
            if next(verdicts, None) is not None:
                raise FilterError(f"Step {plan.name} judged more rows than it was given.")
        self._scores[plan.name] = scores
        kept = len(places) - reasons.total()
        count = StepCount(plan.name, plan.kind, len(places), kept, dict(reasons.most_common()))
        self.counts.append(count)
        return count

    def _drop(self, step: int, place: int, reason: str, detail: str, details: TextIO) -> None:
        self._dropped_by[place] = step
        self._reason[place] = self._reasons.setdefault(reason, len(self._reasons))
        details.write(json.dumps(detail[:DETAIL_CHARS]) + "\n")

    def rows(self) -> Iterator[Candidate]:
        """The rows that are left, with `scores`."""
        return (row for _, row, dropped in self._all() if dropped is None)

    def results(self) -> Iterator[tuple[Candidate, Dropped | None]]:
        """Every row, and why it was dropped."""
        reasons = list(self._reasons)
        files = [self._details(step).open() for step in range(len(self.counts))]
        try:
            for place, row, step in self._all():
                if step is None:
                    yield row, None
                    continue
                name = self.counts[step].name
                detail = json.loads(files[step].readline())
                score = row["scores"].pop(name, None)
                yield row, Dropped(name, reasons[self._reason[place]], detail, score)
        finally:
            for file in files:
                file.close()

    def _all(self) -> Iterator[tuple[int, Candidate, int | None]]:
        place = -1
        for place, row in enumerate(self.source.rows()):
            if place >= self.count:
                break
            row["scores"] = {
                name: float(values[place])
                for name, values in self._scores.items()
                if not np.isnan(values[place])
            }
            step = int(self._dropped_by[place])
            yield place, row, None if step < 0 else step
        if place + 1 != self.count:
            raise FilterError(
                f"{self.source.path} had {self.count} rows and now has other ones: it changed "
                "while it was filtered. Wait until `axolotl distill generate` is done, and filter "
                "again."
            )

    def _details(self, step: int) -> Path:
        return self.scratch / f"details-{step}.jsonl"
