"""A pool of processes of this machine.

They are our own, not multiprocessing's: those import the caller's main module again, which on the
command line is Axolotl with torch, and takes longer and more memory than all they are to do.
A question and its answer are JSON. What goes wrong becomes the answer `Failed`.
"""

import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import Any

from axolotl_distill.errors import FilterError
from axolotl_distill.sandbox.base import Failed
from axolotl_distill.sandbox.processes import hide_memory

START_SECONDS = 300.0  # for the imports, on a busy machine
# Of the environment. The rest may hold keys, which text that is evaluated has no business with.
NEEDED = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|DYLD_\w+|VIRTUAL_ENV|PYTHON\w+"
)
SERVE = "import sys; from axolotl_distill.sandbox.workers import serve; serve(*sys.argv[1:])"


class Workers:
    """A Pool: `count` processes that call `function` ("package.module:name").

    memory_mb  address space of a process, in MiB; no limit where the system knows none (macOS)
    confined   deny the process files to write, other processes and the network. It is a net for
               text that a library evaluates, and no security boundary.

    Processes start with the first calls and end with `close`, or with this process, however it
    ends.
    """

    def __init__(self, function: str, *, count: int, memory_mb: int, confined: bool = True):
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="workers")
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes = [_Process(function, memory_mb, confined) for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)

    def submit(self, *arguments: Any, timeout: float) -> "Future[Any]":
        """As Pool.submit. A process whose call takes longer than `timeout` is killed and replaced.

        Raises FilterError, from the future, when the processes cannot be started.
        """
        return self._threads.submit(self._call, arguments, timeout)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.retire()
        self._threads.shutdown()

    def _call(self, arguments: tuple[Any, ...], timeout: float) -> Any:
        process = self._idle.get()
        try:
            fresh = process.start()
            answer = process.ask(arguments, timeout)
            if not fresh and answer in (Failed("ran out of memory"), Failed("crashed")):
                # It may have been what earlier calls left behind.
                process.start()
                answer = process.ask(arguments, timeout)
            return answer
        finally:
            self._idle.put(process)


class _Process:
    """One process, used by one thread at a time."""

    def __init__(self, function: str, memory_mb: int, confined: bool):
        self._what = [function, str(memory_mb), str(int(confined))]
        self._running: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._retired = False
        self._starting = Lock()  # held while a process begins, so that none begins after `retire`

    def start(self) -> bool:
        """Whether a process had to be started."""
        with self._starting:
            if self._running is not None or self._retired:
                return False
            self._launch()
        ready = self._receive(START_SECONDS)
        if ready != {"answer": "ready"} and not self._retired:
            self.kill()
            seen = ready.detail or ready.reason if isinstance(ready, Failed) else ready
            raise FilterError(f"a verifying process ({self._what[0]}) did not start: {seen}")
        return True

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._running = subprocess.Popen(
                [sys.executable, "-P", "-c", SERVE, str(theirs.fileno()), *self._what],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={
                    **{key: text for key, text in os.environ.items() if NEEDED.fullmatch(key)},
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    # Idle threads of numpy's would take most of the address space.
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
            )
        self._pipe = Connection(ours.detach())

    def ask(self, arguments: tuple[Any, ...], timeout: float) -> Any:
        if self._pipe is None:
            return Failed("crashed")
        try:
            self._pipe.send_bytes(json.dumps(arguments).encode())
            reply = self._receive(timeout)
        except OSError:
            reply = Failed("crashed")
        if isinstance(reply, Failed):
            if reply.reason != "failed":
                self.kill()
            return reply
        return reply["answer"]

    def _receive(self, timeout: float) -> Any:
        if self._pipe is None:
            return Failed("crashed")
        try:
            if not self._pipe.poll(timeout):
                return Failed("timed out", f"after {timeout:g} s")
            reply = json.loads(self._pipe.recv_bytes())
        except (OSError, EOFError, ValueError):
            return Failed("crashed")
        return Failed(*reply["failed"]) if "failed" in reply else reply

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def retire(self) -> None:
        """For good, from another thread: the one that waits for an answer sees the pipe end."""
        with self._starting:
            self._retired = True
            running = self._running
        if running is not None:
            running.kill()
            running.wait()


def serve(pipe: str, function: str, memory_mb: str, confined: str) -> None:
    """Runs in the process: answers until the pipe ends."""
    _die_with_parent()
    hide_memory()
    connection = Connection(int(pipe))
    try:
        module, _, name = function.partition(":")
        call: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except Exception as error:
        connection.send_bytes(json.dumps({"failed": ["failed", repr(error)]}).encode())
        return
    _limit_memory(int(memory_mb))
    if int(confined):
        _confine()
    connection.send_bytes(b'{"answer": "ready"}')
    while True:
        try:
            arguments = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        connection.send_bytes(_reply(call, arguments))


def _reply(call: Callable[..., Any], arguments: list[Any]) -> bytes:
    try:
        return json.dumps({"answer": call(*arguments)}).encode()
    except MemoryError:
        return json.dumps({"failed": ["ran out of memory"]}).encode()
    except Exception as error:
        return json.dumps({"failed": ["failed", f"{type(error).__name__}: {error}"[:500]]}).encode()


def _die_with_parent() -> None:
    """A hung process would not see the pipe end when its parent is killed. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _limit_memory(memory_mb: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, hard))


DENIED = (
    *("subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "signal.", "urllib.", "sqlite3."),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "os.remove"),
    *("os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.ch"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _confine() -> None:
    sys.dont_write_bytecode = True

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(DENIED) or (event == "open" and arguments[2] & WRITES):
            raise PermissionError(f"{event} is denied here")

    sys.addaudithook(refuse)
