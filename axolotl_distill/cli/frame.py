"""The frame around every command: what goes to which stream, and how a command ends.

stdout holds what the command found out, for people or, with --json, one JSON document and nothing
else; progress, warnings, errors and the logs of libraries are on stderr. A command ends with 0,
with 1 after an error, and with 128 + the signal's number after it was stopped.
"""

import functools
import json
import logging
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from types import FrameType
from typing import Any

import click

from axolotl_distill.cli.faults import known_fault
from axolotl_distill.errors import DistillError
from axolotl_distill.show import foreign, printable, redact

LOG_LEVEL = "AXOLOTL_LOG_LEVEL"
STOPPED = 128
# A shell's number for a program whose reader went away.
NO_READER = STOPPED + signal.SIGPIPE


def framed(kept: str, reports: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Puts a command into the frame, with the options --json (if it reports), --verbose, --debug.

    kept     what is still there, and what to do, after the command was stopped or failed; a note on
             the KeyboardInterrupt (`add_note`) is said instead
    reports  the command returns what --json prints; after an error it is the error's `report`
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapped(
            *args: Any, verbose: bool, debug: bool, as_json: bool = False, **options: Any
        ) -> None:
            with ends_well(kept, debug), _logs(verbose):
                if not as_json:
                    command(*args, **options)
                    return
                with _stdout_alone() as write:
                    try:
                        report = command(*args, **options)
                    except DistillError as error:
                        if error.report is not None:
                            write(_as_json(error.report))
                        raise
                    write(_as_json(report))

        options = [
            click.option("--verbose", is_flag=True, help="Show what Axolotl logs."),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        ]
        if reports:
            options.insert(
                0, click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
            )
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def _as_json(report: Any) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


@contextmanager
def ends_well(kept: str, debug: bool = False) -> Iterator[None]:
    """However the work within ends, the process ends as a command does; `kept` as in `framed`."""
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that has no "…" shows an escape and does not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    with _signals() as came:
        try:
            yield
        except (KeyboardInterrupt, click.Abort) as stop:
            notes = getattr(stop, "__notes__", None) or [kept]
            _tell("stopped. " + " ".join(notes))
            sys.exit(STOPPED + (came[-1] if came else signal.SIGINT))
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _reader_left():
                sys.exit(NO_READER)
            _tell(_said(error, kept), fg="red")
            if debug:
                _tell("".join(traceback.format_exception(error)))
            sys.exit(1)


def _said(error: Exception, kept: str) -> str:
    if isinstance(error, DistillError):
        return "error: " + "\n".join([str(error), *getattr(error, "__notes__", ())])
    fault = known_fault(error)
    if fault is not None:
        return f"error: {fault}\n{kept}"
    return (
        f"error: {type(error).__name__}: {foreign(error)}\nNobody expected this: it is a fault of "
        "axolotl-distill or of a library below it. Please report it with the traceback, which is "
        f"in {_traceback_file(error)}.\n{kept}"
    )


def _traceback_file(error: Exception) -> str:
    text = printable(redact("".join(traceback.format_exception(error))), most=None, lines=True)
    try:
        handle, path = tempfile.mkstemp(prefix="axolotl-distill-", suffix=".log")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as failed:
        return f"no file ({foreign(failed)}); --debug prints it"
    return path


def _tell(text: str, **style: Any) -> None:
    # Where nobody is there to read it, the exit code still says what happened.
    with suppress(OSError):
        click.secho(printable(redact(text), most=None, lines=True), err=True, **style)


def _reader_left() -> bool:
    """Whether it is stdout whose reader went away; then nothing more is written to it."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    pipe = select.poll()
    pipe.register(number, 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return True


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP stop a command as Ctrl-C does, so that it keeps the same; yields the
    numbers of those that came."""
    came: list[int] = []
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A process that was forked within the command is not to save anything.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        came.append(number)
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:
            raise KeyboardInterrupt  # SIGINT is ignored, as in the background of a script

    before: dict[int, Any] = {}
    number: int
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    except ValueError:
        pass  # Not the main thread: whoever runs it there takes the signals.
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logs(verbose: bool) -> Iterator[None]:
    """Logs go to stderr, Axolotl's from warnings on unless the user asked for more.

    Axolotl sets up its logging when its command line is imported: before this, or within.
    """
    asked = verbose or LOG_LEVEL in os.environ
    handlers = [
        handler
        for name in (None, "axolotl")
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler)
        and handler.stream in (sys.stdout, sys.__stdout__)
    ]
    before = [(handler, handler.stream, handler.level) for handler in handlers]
    for handler in handlers:
        handler.setStream(sys.stderr)
        if not asked:
            handler.setLevel(logging.WARNING)
    if not asked:
        os.environ[LOG_LEVEL] = "WARNING"
    try:
        yield
    finally:
        for handler, stream, level in before:
            handler.setStream(stream)
            handler.setLevel(level)
        if not asked:
            del os.environ[LOG_LEVEL]


@contextmanager
def _stdout_alone() -> Iterator[Callable[[str], object]]:
    """All that is printed within goes to stderr, by whatever library or child process; yields what
    writes to the real stdout."""
    stdout = sys.stdout
    try:
        number = stdout.fileno()
    except (OSError, ValueError):  # no file: a test, a notebook
        with redirect_stdout(sys.stderr):
            yield stdout.write
        return

    def write(text: str) -> None:
        left = memoryview(text.encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(alone, left) :]
        except BrokenPipeError:
            sys.exit(NO_READER)

    stdout.flush()
    alone = os.dup(number)
    try:
        os.dup2(sys.stderr.fileno(), number)
        with redirect_stdout(sys.stderr):
            yield write
    finally:
        os.dup2(alone, number)
        os.close(alone)
