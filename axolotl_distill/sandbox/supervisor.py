"""The supervisor: a process that runs the code, looks after its limits and kills what is left.

On Linux it is a subreaper: whatever the code forks, daemons too, becomes its child when its own
parent dies, and is killed. Started by root, the code runs under a user id of its own, so that it
can neither kill its supervisor nor fork without limit. Without root and without walls it can kill
its supervisor; what it left is then found by a mark in its environment. On macOS there are no
subreapers: the code's process group and the marked processes are killed.
"""

import contextlib
import errno
import json
import os
import select
import sys
import time
from typing import Any

from .become import USERS, become_the_code
from .processes import descendants, hide_memory, kill_all, libc, memory
from .remove import remove, remove_leftovers

LOOK = 0.1  # seconds between two looks at the memory and the files of all processes together
Order = dict[str, Any]  # base.Limits, and what local.Processes adds


def main() -> None:
    print(supervise(json.loads(sys.stdin.readline())), flush=True)


def supervise(order: Order) -> str:
    """Runs the code and kills all that is left of it. Returns the status of an Outcome."""
    if sys.platform == "linux":
        libc().prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    # A number that nobody has: a limit on processes counts all of a user's, and files and shared
    # memory that the code leaves are known by it.
    order["user"] = USERS[os.getpid() % len(USERS)] if os.geteuid() == 0 else None
    # The caller's folder is closed to others; the code gets to its own through the working folder.
    os.chmod(order["folder"], 0o711)
    child = os.fork()
    if child == 0:
        become_the_code(order)
    hide_memory()
    status = _wait(child, order)
    kill_all(child)
    if order["user"] is not None:
        remove_leftovers(order["user"])
    if status == "abandoned":
        remove(order["folder"])
    return status


def _wait(child: int, order: Order) -> str:
    deadline, look = time.monotonic() + order["seconds"], time.monotonic() + LOOK
    while True:
        # The wait between two looks; readable means that the caller is gone.
        gone = select.select([0], [], [], 0.005)[0]
        pid, status = os.waitpid(child, os.WNOHANG)
        # bwrap, like a shell, reports a signal as an exit code above 128.
        if pid and (os.WIFSIGNALED(status) or (order["bwrap"] and os.WEXITSTATUS(status) > 128)):
            return "killed"
        if pid:
            return "ok" if os.WEXITSTATUS(status) == 0 else "failed"
        if gone:
            return "abandoned"
        now = time.monotonic()
        if now > deadline:
            return "timed out"
        if now > look and sys.platform == "linux":
            if sum(map(memory, descendants())) > order["memory_mb"] << 20:
                return "out of memory"
            if _is_larger(f"{order['folder']}/work", order["folder_mb"] << 20):
                return "out of disk"
            # Less often where it takes long: a machine may have thousands of processes.
            look = now + max(LOOK, 10 * (time.monotonic() - now))


def _is_larger(folder: str, limit: int) -> bool:
    """Whether it takes more bytes of disk. An empty file takes some too."""
    size, todo = 0, [folder]
    while todo:
        path = todo.pop()
        try:
            entries = _scan(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True  # nobody needs folders so deep that they cannot be looked into
            continue  # it may be gone again
        with entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    size += 4096 + 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                if size > limit:
                    return True
    return False


def _scan(path: str) -> Any:
    try:
        return os.scandir(path)
    except PermissionError:
        os.chmod(path, 0o700)  # the code closed it
        return os.scandir(path)
