"""The loop: requests to a backend, its answers to disk, many at once."""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack

from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.backend import Backend
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.request import Refused, Request
from axolotl_distill.generate.writer import GroupWriter
from axolotl_distill.trajectories import Journal

GRACE = 10.0
HOPELESS = 20


async def run_requests(
    todo: Iterable[Request],
    backend: Backend,
    teacher: str,
    journal: Journal,
    refusals: Journal,
    meter: Meter,
    progress: Progress,
) -> None:
    """Ask `backend` every request of `todo`, until `meter` stops it.

    Answers go to `journal` as they come, in any order; what the backend refuses goes to
    `refusals`. When something fails, nothing new is asked, what is under way has GRACE seconds to
    arrive and is kept, and the first error is raised. A cancelled run keeps what arrived.
    """
    batches = backend.batches(todo)
    failed = asyncio.Event()
    with ExitStack() as stack:
        kept, refused = GroupWriter(journal), GroupWriter(refusals)
        stack.callback(refused.close)
        stack.callback(kept.close)

        async def ask() -> None:
            for batch in batches:
                while batch:
                    fits = await meter.reserve(batch)
                    if not fits or failed.is_set():
                        return
                    await complete(batch[:fits])
                    batch = batch[fits:]

        async def complete(batch: list[Request]) -> None:
            answers = list(zip(batch, await backend.complete(batch), strict=True))
            no = [a.row(r, teacher) for r, a in answers if isinstance(a, Refused)]
            yes = [a.row(r, teacher) for r, a in answers if not isinstance(a, Refused)]
            await kept.append(yes)
            await refused.append(no)
            await meter.settle(batch, yes, no)
            progress.add(yes, no)
            if progress.nothing_but_refusals >= HOPELESS:
                raise GenerateError(hopeless(no[-1]["reason"]))

        tasks = [asyncio.create_task(ask()) for _ in range(backend.concurrency)]
        try:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if pending:
                failed.set()
                await asyncio.wait(pending, timeout=GRACE)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    for task in [*done, *pending]:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()


def hopeless(last_reason: str) -> str:
    return f"The teacher refused all of the first {HOPELESS} requests. The last time: {last_reason}"
