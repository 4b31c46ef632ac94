"""`--engine ray`: steps that judge each row alone run in the workers of a Ray cluster.

Steps that compare rows (deduplicate, best_of_n, top) and those whose work a server does (judge,
reward from a server) run in this process, as with the local engine.
"""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from axolotl_distill import cluster
from axolotl_distill.filter.engine import StepPlan, map_rows
from axolotl_distill.filter.step import Verdict
from axolotl_distill.trajectories.journal import Row

# What is in flight at once. Workers are built anew for each window, so it must not be small; its
# rows are in memory, so it must not be large.
WINDOW_ROWS = 20_000
BATCH_ROWS = 64


def ray_rows(plan: StepPlan, rows: Iterable[Row]) -> Iterator[Verdict]:
    """The engine: one verdict a row, in order."""
    if not plan.is_row_wise():
        yield from map_rows(plan, rows)
        return
    cpus = cluster.connect()
    gpus = 1.0 if plan.kind == "reward" and cluster.has_gpus() else 0.0
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
            yield pickle.loads(result["verdict"])


def _for_one_worker(plan: StepPlan) -> StepPlan:
    """A verifier's pool has a process for every CPU; here the cluster has a worker for each."""
    if plan.kind != "verify":
        return plan
    return replace(plan, args=plan.args.model_copy(update={"workers": 1}))


class _Worker:
    def __init__(self, plan: StepPlan):
        self._step = plan.build()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        rows = (pickle.loads(row) for row in batch["row"])
        return {"verdict": [pickle.dumps(verdict) for verdict in self._step.judge(rows)]}
