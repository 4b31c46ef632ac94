"""`--executor ray`: steps that judge each row alone run in the workers of a Ray cluster.

The others, which compare rows or whose work a server does, run in this process, as with the local
executor.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from axolotl_distill import cluster
from axolotl_distill.errors import DistillError
from axolotl_distill.filter.executor import StepPlan, map_rows
from axolotl_distill.filter.step import STEPS, Candidate, Step, Verdict, Where

# What is in flight at once. Workers are built anew for each window, so it must not be small; its
# rows are in memory, so it must not be large.
WINDOW_ROWS = 20_000
BATCH_ROWS = 64


def ray_rows(plan: StepPlan, rows: Iterable[Candidate]) -> Iterator[Verdict]:
    """The executor: one verdict a row, in order. Raises what a step raises in a worker."""
    if plan.where is Where.HERE:
        yield from map_rows(plan, rows)
        return
    cpus = cluster.connect()
    gpus = 1.0 if plan.where is Where.ON_GPU and cluster.gpus() else 0.0
    remaining = iter(rows)
    while window := list(islice(remaining, WINDOW_ROWS)):
        results = cluster.stream(
            [{"row": pickle.dumps(row)} for row in window],
            _Worker,
            (_for_one_worker(plan),),
            workers=cpus,
            batch_size=min(BATCH_ROWS, -(-len(window) // cpus)),
            gpus=gpus,
        )
        for result in results:
            verdict = pickle.loads(result["verdict"])
            if isinstance(verdict, DistillError):
                raise verdict
            yield verdict


def _for_one_worker(plan: StepPlan) -> StepPlan:
    return replace(plan, args=STEPS[plan.kind].one_of_many(plan.args))


class _Worker:
    """An error of ours is returned, as the last verdict: Ray would hide it in its own."""

    def __init__(self, plan: StepPlan):
        self._step: Step | DistillError
        try:
            self._step = plan.build()
        except DistillError as error:
            self._step = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"verdict": [pickle.dumps(verdict) for verdict in self._verdicts(batch["row"])]}

    def _verdicts(self, rows: Iterable[bytes]) -> Iterator[Verdict | DistillError]:
        if isinstance(self._step, DistillError):
            yield self._step
            return
        try:
            yield from self._step.judge(pickle.loads(row) for row in rows)
        except DistillError as error:
            yield error
