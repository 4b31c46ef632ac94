"""One process at a time; or many that read."""

import fcntl
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from axolotl_distill.errors import DistillError

LOCK = ".lock"


def file_lock(path: Path) -> FileLock:
    """The kernel's lock on a file, which ends with the process that holds it, however that ends.

    The library would put a marker file in its place where a file system has no locks; that of a
    killed process would keep everybody out, so there `acquire` raises OSError instead. The file
    stays when the lock is released: others may be waiting at it.
    """
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def lock_folder(
    path: Path, error: type[DistillError], key: str, at: Path | None = None
) -> FileLock:
    """The lock of a folder's one writer, held until it is released or the process ends.

    key  by what another folder is named
    at   the lock's file, where the folder itself is replaced; else `.lock` in it

    Raises `error` when another process holds it, and where the file system has no locks; OSError
    for a folder that cannot be written.
    """
    # Where the file cannot be made, the folder is at fault and not its locks.
    file = at or path / LOCK
    file.open("a").close()
    lock = file_lock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise error(
            f"{path} is being written by another process. Wait for it, stop it, or use another "
            f"folder ({key})."
        ) from None
    except (OSError, NotImplementedError) as fault:
        raise error(
            f"{path} cannot be locked ({getattr(fault, 'strerror', None) or fault}): its file "
            "system has no locks, and a second writer could not be kept out. Write to a local "
            f"folder ({key}), and copy it afterwards."
        ) from fault
    return lock


def try_hold(file: IO[bytes], *, shared: bool) -> bool:
    """Whether the kernel's lock on an open file could be had at once: with others that hold it
    `shared`, or alone. It replaces one that this file already holds, and ends with `let_go`.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def let_go(file: IO[bytes]) -> None:
    """Release and close. Not by closing alone: a process that was forked meanwhile has the file
    open too."""
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()
