"""Where requests are asked from."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.generate.backend import make_backend
from axolotl_distill.generate.folder import GenerationFolder, Part
from axolotl_distill.generate.loop import Loop
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.progress import Progress
from axolotl_distill.generate.request import Request


@dataclass(frozen=True)
class Work:
    """What is to be asked of whom, and what a run is counted and kept by."""

    teacher: TeacherArgs
    args: GenerateArgs
    todo: list[Request]
    folder: GenerationFolder
    meter: Meter
    progress: Progress


Executor = Callable[[Work], None]
"""Asks all of `todo`, unless the budget or an error ends it. Raises DistillError, then with what
was under way kept."""


def ask_here(work: Work) -> None:
    """The local executor: from this process."""
    backend = make_backend(work.teacher, work.args, work.folder.uid)

    async def ask() -> None:
        try:
            await Loop(backend, part, work.meter, work.progress).run(work.todo)
        finally:
            await backend.close()

    with Part(work.folder.path) as part:
        asyncio.run(ask())
