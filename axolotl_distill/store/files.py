"""Files that are whole or not there, a folder's one writer, and what a disk refuses, in words."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from axolotl_distill.errors import DistillError, StoreError

TEMPORARY = ".tmp"
LOCK = ".lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}


def write_atomically(path: Path, data: bytes) -> None:
    """A temporary name, fsync, rename, fsync of the folder: whole or not at all."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a file that is already on the disk, and make the rename itself last."""
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """What the disk refuses while a store is written becomes a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DistillError):
            raise
        kept = "what was committed is kept, and the same command goes on with it"
        if error.errno in FULL:
            remedy = f"The disk, or a quota of it, is full. Make room; {kept}."
        elif error.errno in FORBIDDEN:
            remedy = (
                "Use another folder (`distill.capture.output`, or `--output`), or make this one "
                f"a folder that may be written to; {kept}."
            )
        else:
            remedy = f"Mend that; {kept}."
        raise StoreError(
            f"{error.filename or path}: the store cannot be written: {error.strerror or error}. "
            f"{remedy}"
        ) from error


def lock_folder(path: Path) -> IO[str]:
    """The lock of a folder's one writer, held until it is closed or the process ends.

    Its file stays: deleting it would let two writers hold locks on two files. Raises StoreError
    when another process holds it, and where the file system has no locks.
    """
    lock = (path / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreError(
            f"{path} is being written by another process. Wait for it, or stop it."
        ) from None
    except OSError as error:
        lock.close()
        raise StoreError(
            f"{path} cannot be locked ({error.strerror}): its file system has no locks, and a "
            "second writer could not be kept out. Write to a local folder, and copy the store "
            "afterwards."
        ) from error
    return lock
