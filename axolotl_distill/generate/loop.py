"""The loop: requests to a backend, its answers to disk, many at once."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.backend import Backend
from axolotl_distill.generate.folder import Part
from axolotl_distill.generate.meter import Allowance
from axolotl_distill.generate.request import Refusal, Refused, Request
from axolotl_distill.generate.tally import Counted, counted
from axolotl_distill.generate.writer import GroupWriter

GRACE = 10.0
HOPELESS = 20


class Watcher(Protocol):
    """Is told of what came: the progress bar, or what stands for it elsewhere."""

    def add(self, answered: Sequence[Counted], refused: Sequence[Refusal]) -> None: ...

    @property
    def nothing_but_refusals(self) -> int:
        """How many requests were refused while not one was ever answered."""
        ...


class Loop:
    """Asks `backend` what `allowance` lets it, keeps what comes in `part`, and tells `watcher`."""

    def __init__(self, backend: Backend, part: Part, allowance: Allowance, watcher: Watcher):
        self._backend, self._part = backend, part
        self._allowance, self._watcher = allowance, watcher

    async def run(self, todo: Iterable[Request]) -> None:
        """Ask every request of `todo`, until the allowance ends.

        Answers are kept as they come, in any order, and what the backend refuses beside them. When
        something fails, nothing new is asked, what is under way has GRACE seconds to arrive and is
        kept, and the first error is raised. A cancelled run keeps what arrived.
        """
        batches = self._backend.batches(todo)
        failed = asyncio.Event()
        with ExitStack() as stack:
            kept, refused = GroupWriter(self._part.answers), GroupWriter(self._part.refusals)
            stack.callback(refused.close)
            stack.callback(kept.close)
            tasks = [
                asyncio.create_task(self._ask(batches, failed, kept, refused))
                for _ in range(self._backend.concurrency)
            ]
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
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _ask(
        self,
        batches: Iterator[list[Request]],
        failed: asyncio.Event,
        kept: GroupWriter,
        refused: GroupWriter,
    ) -> None:
        """One of the tasks that share `batches`."""
        for batch in batches:
            while batch:
                fits = await self._allowance.reserve(batch)
                if not fits or failed.is_set():
                    return
                await self._complete(batch[:fits], kept, refused)
                batch = batch[fits:]

    async def _complete(
        self, batch: list[Request], kept: GroupWriter, refused: GroupWriter
    ) -> None:
        teacher = self._backend.teacher
        answers = list(zip(batch, await self._backend.complete(batch), strict=True))
        no = [a.row(r, teacher) for r, a in answers if isinstance(a, Refused)]
        yes = [a.row(r, teacher) for r, a in answers if not isinstance(a, Refused)]
        await kept.append(yes)
        await refused.append(no)
        await self._allowance.settle(
            batch, [row["usage"] for row in yes], [row["usage"] for row in no]
        )
        self._watcher.add([counted(row) for row in yes], no)
        if self._watcher.nothing_but_refusals >= HOPELESS:
            raise GenerateError(hopeless(no[-1]["reason"]))


def hopeless(last_reason: str) -> str:
    return f"The teacher refused all of the first {HOPELESS} requests. The last time: {last_reason}"
