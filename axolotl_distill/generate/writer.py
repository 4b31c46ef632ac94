"""Rows to disk from many tasks at once, off the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from axolotl_distill.errors import GenerateError
from axolotl_distill.trajectories.journal import Journal, Row


class GroupWriter:
    """All rows that wait while the disk is at work go into its next write and fsync together."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._waiting: list[Row] = []
        self._thread = ThreadPoolExecutor(1)

    async def append(self, rows: Sequence[Row]) -> None:
        """Returns when `rows` are on the disk. A task cancelled here loses none: `close` writes
        them. Raises GenerateError when the disk takes no more."""
        self._waiting.extend(rows)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)

    def close(self) -> None:
        """Writes what waits."""
        try:
            self._thread.submit(self._write).result()
        finally:
            self._thread.shutdown()

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        try:
            self._journal.append(rows)
        except OSError as error:
            raise GenerateError(
                f"{self._journal.path} cannot be written: {error}. Make room and run the same "
                "command again."
            ) from error
