"""Records from a teacher behind a server."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any, Self

from axolotl_distill.capture.source import WINDOW_ROWS, Row
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import DistillError
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import RecordBatch
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary

GRACE = 10.0
Task = asyncio.Task[RecordBatch]


class ServerSource:
    """Asks a server for a window of rows at once; they come in any order.

    A context manager: it holds an event loop and the connections in it.
    """

    window_rows = WINDOW_ROWS

    def __init__(self, args: CaptureArgs, vocab_size: int):
        assert args.teacher.server is not None
        self.args = args
        self.vocab_size = vocab_size
        self._runner = asyncio.Runner()
        self._teacher = ServerTeacher(
            args.teacher.model,
            args.teacher.server,
            k=min(args.k if args.method == "topk" else args.max_k, vocab_size),
            vocab_size=vocab_size,
        )

    def check(self, tokenizer: Any, longest: int) -> SharedVocabulary:
        """See ServerTeacher.check."""
        return self._runner.run(self._teacher.check(tokenizer, longest))

    def records(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises what ServerTeacher.top_logprobs does, with the row it is for; what is
        under way then has GRACE seconds to arrive."""
        loop = self._runner.get_loop()
        tasks = {loop.create_task(self._row(index, row)): index for index, row in rows.items()}
        pending, fault = set(tasks), None
        try:
            while pending and fault is None:
                done, pending = self._runner.run(_wait(pending, asyncio.FIRST_COMPLETED, None))
                fault = next((task.exception() for task in done if task.exception()), None)
                if fault is not None and pending:
                    late, _ = self._runner.run(_wait(pending, asyncio.ALL_COMPLETED, GRACE))
                    done |= late
                for task in done:
                    if task.exception() is None:
                        yield tasks[task], task.result()
        finally:
            for task in tasks:
                task.cancel()
        if fault is not None:
            raise fault

    async def _row(self, index: int, row: Row) -> RecordBatch:
        ids = row["input_ids"]
        try:
            top = await self._teacher.top_logprobs(
                ids, supervised_positions(row["labels"]).tolist()
            )
        except DistillError as error:
            raise type(error)(f"Row {index} of the source ({len(ids)} tokens): {error}") from error
        return records_from_top(
            top,
            temperatures=self.args.temperatures,
            vocab_size=self.vocab_size,
            p=self.args.p if self.args.method == "nucleus" else math.inf,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._teacher.close())
        self._runner.close()


async def _wait(tasks: set[Task], when: str, seconds: float | None) -> tuple[set[Task], set[Task]]:
    return await asyncio.wait(tasks, return_when=when, timeout=seconds)
