"""Rows to disk from many tasks at once, off the event loop."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from axolotl_distill.errors import GenerateError
from axolotl_distill.trajectories.journal import Journal


@dataclass
class _Share:
    """The rows of one task, and what went wrong with them."""

    rows: Sequence[Mapping[str, Any]]
    error: GenerateError | None = None


class GroupWriter:
    """All rows that wait while the disk is at work go into its next write and fsync together.

    When that fails, each task's rows are tried by themselves, so that what fits is kept and every
    task learns what became of its own.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._waiting: list[_Share] = []
        self._changing = Lock()
        self._thread = ThreadPoolExecutor(1)

    async def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Returns when `rows` are on the disk. A task cancelled here loses none: `close` writes
        them. Raises GenerateError when the disk does not take them; then they are not there."""
        share = _Share(rows)
        with self._changing:
            self._waiting.append(share)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._write)
        if share.error is not None:
            raise share.error

    def close(self) -> None:
        """Writes what waits. Raises GenerateError when the disk does not take it."""
        left = list(self._waiting)
        try:
            self._thread.submit(self._write).result()
        finally:
            self._thread.shutdown()
        for share in left:
            if share.error is not None:
                raise share.error

    def _write(self) -> None:
        with self._changing:
            shares, self._waiting = self._waiting, []
        rows = [row for share in shares for row in share.rows]
        if not rows:
            return
        try:
            self._journal.append(rows)
        except OSError:
            for share in shares:
                self._write_alone(share)

    def _write_alone(self, share: _Share) -> None:
        try:
            self._journal.append(share.rows)
        except OSError as error:
            share.error = GenerateError(
                f"{self._journal.path} cannot be written: {error}. {len(share.rows)} that had "
                "arrived could not be kept and will be asked for again. Make room and run the same "
                "command again."
            )
