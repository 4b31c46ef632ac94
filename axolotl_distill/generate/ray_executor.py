"""`--executor ray`: the same requests, asked from the workers of a Ray cluster.

Every worker runs the same loop with a backend of its own and keeps what it gets in a file of its
own in the folder, which must lie where every node sees it: what arrived is there after any kill.
The budget is held by one actor for all.
"""

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from axolotl_distill import cluster
from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.recipe import Recipe
from axolotl_distill.errors import DistillError, GenerateError
from axolotl_distill.generate.backend import make_backend
from axolotl_distill.generate.folder import GenerationFolder, journals
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.run import HOPELESS, hopeless, run_requests
from axolotl_distill.generate.tally import Tally, brief

# Batches a worker is given at a time: enough to keep it busy, few enough to share out evenly.
ROUNDS = 8

Row = dict[str, Any]


def run(
    recipe: Recipe,
    folder: GenerationFolder,
    todo: list[Request],
    meter: Meter,
    progress: Progress,
) -> None:
    """As `run_requests`, on a cluster. After an error nothing new is asked anywhere, what is under
    way is kept, and the first error is raised."""
    cpus = cluster.connect()
    local = recipe.teacher.server is None
    concurrency = recipe.generate.batch_size if local else recipe.teacher.server.concurrency
    workers = cpus if local else min(cpus, concurrency)
    each = recipe.model_copy(deep=True)
    if not local:
        each.teacher.server.concurrency = max(1, concurrency // workers)
    batch_size = ROUNDS * (concurrency if local else each.teacher.server.concurrency)

    bank = (
        ray.remote(_Bank)
        .options(max_concurrency=1000)
        .remote(recipe.generate, folder.earlier, folder.next_part)
    )
    results = cluster.stream(
        [{"request": pickle.dumps(request)} for request in todo],
        _Worker,
        (each, folder.uid, str(folder.path.resolve()), folder.earlier.completions, bank),
        workers=workers,
        batch_size=min(batch_size, max(1, len(todo) // workers)),
        gpus=1.0 if local and cluster.has_gpus() else 0.0,
        # A worker that died has rows on disk which its batch, done again, would pay for twice.
        max_restarts=0,
        max_task_retries=0,
    )
    error = None
    try:
        for result in results:
            answered, refused, failed = pickle.loads(result["result"])
            progress.add(answered, refused)
            if progress.nothing_but_refusals >= HOPELESS and not failed:
                failed = hopeless(refused[-1]["reason"])
            if failed and not error:
                error = failed
                ray.get(bank.halt.remote())
    except ray.exceptions.RayError as death:
        raise GenerateError(
            f"A worker of the Ray cluster died: {death}\nWhat it had received is kept; run the "
            "same command again."
        ) from death
    meter.stopped = ray.get(bank.is_stopped.remote())
    if error:
        raise GenerateError(error)


class _Bank:
    """What the workers share: the budget, the numbers of their files, and word of an error."""

    def __init__(self, args: GenerateArgs, spent: Tally, next_part: int):
        self._meter = Meter(args, spent)
        self._part = next_part - 1

    async def reserve(self, requests: Sequence[Request]) -> int:
        return await self._meter.reserve(requests)

    async def settle(
        self, requests: Sequence[Request], rows: Sequence[Row], refused: Sequence[Row]
    ) -> None:
        await self._meter.settle(requests, rows, refused)

    async def halt(self) -> None:
        await self._meter.halt()

    async def next_part(self) -> int:
        self._part += 1
        return self._part

    async def is_stopped(self) -> bool:
        return self._meter.stopped


class _SharedMeter:
    """A worker's side of the bank."""

    def __init__(self, bank: Any):
        self._bank = bank

    async def reserve(self, requests: Sequence[Request]) -> int:
        return await self._bank.reserve.remote(requests)

    async def settle(
        self, requests: Sequence[Request], rows: Sequence[Row], refused: Sequence[Row]
    ) -> None:
        used = ([{"usage": row["usage"]} for row in some] for some in (rows, refused))
        await self._bank.settle.remote(requests, *used)


class _Counts:
    """Stands for the progress bar in a worker: keeps what the driver's bar needs."""

    def __init__(self, earlier: int) -> None:
        self._earlier = earlier
        self.answered: list[Row] = []
        self.refused: list[Row] = []

    def add(self, answered: Sequence[Row], refused: Sequence[Row]) -> None:
        self.answered += map(brief, answered)
        self.refused += [{"reason": row["reason"]} for row in refused]

    @property
    def nothing_but_refusals(self) -> int:
        return 0 if self._earlier or self.answered else len(self.refused)


class _Worker:
    """Asks batches of requests; lives in a process of the cluster."""

    def __init__(self, recipe: Recipe, uid: str, folder: str, earlier: int, bank: Any):
        self._loop = asyncio.new_event_loop()
        self._earlier = earlier
        self._bank = bank
        self._teacher = recipe.teacher.model
        self._error: str | None = None
        try:
            self._backend = make_backend(recipe.teacher, recipe.generate, uid)
        except DistillError as failure:
            # Ray would wrap it in an error of its own, and build the worker again.
            self._error = str(failure)
            return
        part = ray.get(bank.next_part.remote())
        self._journal, self._refusals = journals(Path(folder), part)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        todo = [pickle.loads(request) for request in batch["request"]]
        counts, error = _Counts(self._earlier), None
        if self._error:
            return {"result": [pickle.dumps(([], [], self._error))]}
        try:
            self._loop.run_until_complete(
                run_requests(
                    todo,
                    self._backend,
                    self._teacher,
                    self._journal,
                    self._refusals,
                    _SharedMeter(self._bank),
                    counts,
                )
            )
        except DistillError as failure:
            error = str(getattr(failure, "cause", failure))
            ray.get(self._bank.halt.remote())
        self._earlier += len(counts.answered)
        return {"result": [pickle.dumps((counts.answered, counts.refused, error))]}
