"""Processes: which there are, how much memory they take, how all of them are ended."""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "AXOLOTL_DISTILL_SANDBOX"


def libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def hide_memory() -> None:
    """Other processes of the same user can no longer read this one's environment and memory
    through /proc; nor can debuggers. Until it executes another program; Linux only.
    """
    if sys.platform == "linux":
        libc().prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def memory(pid: int) -> int:
    """Bytes; of the pages that it shares with its forks a fair part, where the system tells."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as sums:
        return next((int(line.split()[1]) << 10 for line in sums if line.startswith("Pss:")), 0)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def descendants() -> set[int]:
    """Of this process; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        new = children.pop(todo.pop(), [])
        found.update(new)
        todo += new
    return found


def processes_of(user: int) -> int:
    """How many processes and threads a user has; 0 where there is no /proc."""
    count = 0
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def kill_all(child: int) -> None:
    """Until no child is left, adopted ones among them."""
    while True:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        stop_and_kill(descendants)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def kill_marked(mark: str, seconds: float) -> None:
    """Best effort: the processes that still have the mark that the code was started with."""
    # Until they are stopped they leave this process little of the CPU.
    deadline = time.monotonic() + seconds
    while stop_and_kill(lambda: _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _marked(mark: str) -> set[int]:
    import psutil

    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def stop_and_kill(find: Callable[[], set[int]]) -> set[int]:
    """Kills what `find` finds, and returns it.

    Processes are stopped before they are killed: a stopped one cannot fork, and holds its place in
    the number that there may be.
    """
    stopped: set[int] = set()
    while new := find() - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    _signal(stopped, signal.SIGKILL)
    return stopped


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
