"""What a sandbox is, and what a pool of workers: the interface that verifiers and steps use.

Processes of this machine (local.py, workers.py) fulfil it; machines elsewhere could.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Status = Literal["ok", "failed", "timed out", "killed", "out of memory", "out of disk", "lost"]
# Seconds that a sandbox may take beside the code's own: to start, and to clear up.
GRACE = 10.0
CUT = "\n[…]\n"  # stands for the middle of a stream that was too long


@dataclass(frozen=True)
class Limits:
    """seconds: on the clock. memory_mb: address space a process, and memory of all together, MiB.
    processes: with threads, at once. file_mb: of each file it writes, MiB, output too; folder_mb:
    of all. output: bytes kept of each stream, half its start and half its end, `CUT` in between.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 16
    folder_mb: int = 128
    output: int = 1 << 20


NORMAL = Limits()


@dataclass(frozen=True)
class Outcome:
    """status: "ok" (exit code 0), "failed" (another one), "timed out", "killed" (by a signal, its
    own or for a limit), "out of memory" and "out of disk" (all processes or files together; on
    Linux only; folders whose path is too long to look into count as too much), "lost" (whoever
    looked after it is gone).
    """

    status: Status
    stdout: str = ""
    stderr: str = ""


class Sandbox(Protocol):
    """Where code that nobody trusts runs."""

    def run(self, code: str, stdin: str = "", limits: Limits = NORMAL) -> Outcome:
        """`code` in a Python of its own (`-I`), in an empty folder, with a minimal environment.

        Returns when the code and everything that it started are dead. May be called from any
        thread.
        """
        ...

    def caveat(self) -> str:
        """What it does not keep the code from, for people."""
        ...


@dataclass(frozen=True)
class Failed:
    """No answer of a worker: why, in few words, and what is known of it."""

    reason: Literal["timed out", "ran out of memory", "crashed", "failed"]
    detail: str = ""


class Pool(Protocol):
    """Workers that answer one kind of question over and over, and may hang, crash or eat memory."""

    def submit(self, *arguments: Any, timeout: float) -> "Future[Any]":
        """The future of what the pool's function returns for JSON arguments, or of a Failed.

        timeout: seconds that the call may take. May be called from any thread.
        """
        ...

    def close(self) -> None:
        """Ends the workers; calls under way end as Failed, waiting ones are cancelled."""
        ...
