"""Ctrl-C and SIGTERM end a command that can go on, and it says what is kept. Imports nothing heavy,
so that it is there before what takes long."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import click

BEFORE = "Nothing was written yet. The same command begins again."


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever cleans up after Ctrl-C does so after this, too."""


class Stoppable:
    """For as long as the context lasts, SIGTERM is raised as Ctrl-C is, and either ends the process
    with `kept()` on stderr and exit code 143 or 130. `kept` may be replaced as work goes on."""

    def __init__(self) -> None:
        self.kept: Callable[[], str] = lambda: BEFORE
        self._before: Any = None

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            self._before = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if isinstance(error, KeyboardInterrupt):
            click.echo(f"\nstopped. {self.kept()}", err=True)
            sys.exit(128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A worker, which inherited the handler: its pool ends it like this.
            os._exit(128 + number)
        raise Terminated
