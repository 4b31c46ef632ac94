"""Records from a teacher behind a server."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any, Self

from axolotl_distill.args import CaptureArgs
from axolotl_distill.capture.records import RecordBatch
from axolotl_distill.capture.source import WINDOW_ROWS, Row, supervised_positions
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary


class ServerSource:
    """Asks a server for a window of rows at once; they come in any order and leave in theirs.

    A context manager: it holds an event loop and the connections in it.
    """

    window_rows = WINDOW_ROWS

    def __init__(self, args: CaptureArgs, vocab_size: int):
        assert args.teacher.server is not None and args.teacher.name is not None
        self.args = args
        self.vocab_size = vocab_size
        self._runner = asyncio.Runner()
        self._teacher = ServerTeacher(
            args.teacher.name,
            args.teacher.server,
            k=min(args.k if args.method == "topk" else args.max_k, vocab_size),
            vocab_size=vocab_size,
        )

    def check(self, tokenizer: Any, longest: int) -> SharedVocabulary:
        """See ServerTeacher.check."""
        return self._runner.run(self._teacher.check(tokenizer, longest))

    def records(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises what ServerTeacher.top_logprobs does, for the first row it is for."""
        loop = self._runner.get_loop()
        tasks = {index: loop.create_task(self._row(row)) for index, row in rows.items()}
        try:
            for index, task in tasks.items():
                yield index, self._runner.run(_result(task))
        finally:
            for task in tasks.values():
                task.cancel()

    async def _row(self, row: Row) -> RecordBatch:
        top = await self._teacher.top_logprobs(row["input_ids"], supervised_positions(row).tolist())
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


async def _result(task: asyncio.Task[RecordBatch]) -> RecordBatch:
    return await task
