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

from axolotl_distill import cluster
from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import DistillError, GenerateError
from axolotl_distill.generate.backend import make_backend
from axolotl_distill.generate.executor import Work
from axolotl_distill.generate.folder import Part
from axolotl_distill.generate.loop import HOPELESS, Loop, hopeless
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.request import Refusal, Request
from axolotl_distill.generate.tally import Counted, Tally
from axolotl_distill.trajectories import Usage

# Batches a worker is given at a time: enough to keep it busy, few enough to share out evenly.
ROUNDS = 8


def ask_on_ray(work: Work) -> None:
    """The executor. After an error nothing new is asked anywhere, what is under way is kept, and
    the first error is raised."""
    cpus = cluster.connect()
    import ray

    teacher, args, folder = work.teacher, work.args, work.folder
    concurrency = args.batch_size if teacher.server is None else teacher.server.concurrency
    workers = cpus if teacher.server is None else min(cpus, concurrency)
    batch_size = ROUNDS * concurrency
    each = teacher.model_copy(deep=True)
    if each.server is not None:
        each.server.concurrency = max(1, concurrency // workers)
        batch_size = ROUNDS * each.server.concurrency
    bank: Any = (
        ray.remote(_Bank)
        .options(max_concurrency=1000)
        .remote(args, folder.earlier, folder.next_part)
    )
    results = cluster.stream(
        [{"request": pickle.dumps(request)} for request in work.todo],
        _Worker,
        (each, args, folder.uid, folder.path.resolve(), folder.earlier.completions, bank),
        workers=workers,
        batch_size=min(batch_size, max(1, len(work.todo) // workers)),
        gpus=1.0 if teacher.server is None and cluster.gpus() else 0.0,
        # A worker that died has rows on disk which its batch, done again, would pay for twice.
        max_restarts=0,
        max_task_retries=0,
    )
    error = None
    try:
        for result in results:
            answered, refused, failed = pickle.loads(result["result"])
            work.progress.add(answered, refused)
            if work.progress.nothing_but_refusals >= HOPELESS and not failed:
                failed = hopeless(refused[-1]["reason"])
            if failed and not error:
                error = failed
                ray.get(bank.halt.remote())
    except ray.exceptions.RayError as death:
        raise GenerateError(
            f"A worker of the Ray cluster died: {death}\nWhat it had received is kept; run the "
            "same command again."
        ) from death
    work.meter.stopped = ray.get(bank.is_stopped.remote())
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
        self,
        requests: Sequence[Request],
        answered: Sequence[Usage | None],
        refused: Sequence[Usage | None],
    ) -> None:
        await self._meter.settle(requests, answered, refused)

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
        self,
        requests: Sequence[Request],
        answered: Sequence[Usage | None],
        refused: Sequence[Usage | None],
    ) -> None:
        await self._bank.settle.remote(requests, answered, refused)


class _Counts:
    """Stands for the progress bar in a worker: keeps what the driver's bar needs."""

    def __init__(self, earlier: int) -> None:
        self._earlier = earlier
        self.answered: list[Counted] = []
        self.refused: list[Refusal] = []

    def add(self, answered: Sequence[Counted], refused: Sequence[Refusal]) -> None:
        self.answered += answered
        self.refused += refused

    @property
    def nothing_but_refusals(self) -> int:
        return 0 if self._earlier or self.answered else len(self.refused)


class _Worker:
    """Asks batches of requests; lives in a process of the cluster."""

    def __init__(
        self,
        teacher: TeacherArgs,
        args: GenerateArgs,
        uid: str,
        folder: Path,
        earlier: int,
        bank: Any,
    ):
        import ray

        self._events = asyncio.new_event_loop()
        self._earlier, self._bank = earlier, bank
        self._error: str | None = None
        try:
            self._backend = make_backend(teacher, args, uid)
        except DistillError as failure:
            # Ray would wrap it in an error of its own, and build the worker again.
            self._error = str(failure)
            return
        self._part = Part(folder, ray.get(bank.next_part.remote()))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        import ray

        todo = [pickle.loads(request) for request in batch["request"]]
        counts, error = _Counts(self._earlier), None
        if self._error:
            return {"result": [pickle.dumps(([], [], self._error))]}
        loop = Loop(self._backend, self._part, _SharedMeter(self._bank), counts)
        try:
            self._events.run_until_complete(loop.run(todo))
        except DistillError as failure:
            error = str(getattr(failure, "cause", failure))
            ray.get(self._bank.halt.remote())
        self._earlier += len(counts.answered)
        return {"result": [pickle.dumps((counts.answered, counts.refused, error))]}
