"""Removes what code has left: trees however deep and closed, shared memory, files elsewhere."""

import contextlib
import itertools
import logging
import os
import sys
from pathlib import Path

from .processes import libc

SHARED = ("/tmp", "/var/tmp", "/dev/shm")  # where everybody may write
IPC_RMID = 0
log = logging.getLogger(__name__)


def remove(folder: str | Path) -> None:
    """A folder and all that is in it. Says so where something stays.

    A tree may be deeper than a path may be long, or than a process may open files: folders within
    folders are moved to the top first. It may be closed by its owner, and is opened then.
    """
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        os.fchmod(top, 0o700)
        numbers = itertools.count()
        while names := os.listdir(top):
            for name in names:
                _remove_one(top, name, numbers)
        os.rmdir(folder)
    except OSError as error:
        log.warning("What the code of an answer left in %s could not be removed: %s", folder, error)
    finally:
        os.close(top)


def _remove_one(top: int, name: str, numbers: "itertools.count[int]") -> None:
    if not _is_folder(name, top):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for below in os.listdir(inner):
            if _is_folder(below, inner):
                os.chmod(below, 0o700, dir_fd=inner)  # to move a folder is to write into it
                os.rename(below, f".removing-{next(numbers)}", src_dir_fd=inner, dst_dir_fd=top)
            else:
                os.unlink(below, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


def _is_folder(name: str, within: int) -> bool:
    return os.stat(name, dir_fd=within, follow_symlinks=False).st_mode & 0o170000 == 0o040000


def remove_leftovers(user: int) -> None:
    """Files in the folders of everybody, and shared memory, semaphores and queues, of a user."""
    for folder in SHARED:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid != user:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        remove(entry.path)
                    else:
                        os.unlink(entry.path)
    if sys.platform == "linux":
        for number in _of_user("shm", "shmid", user):
            libc().shmctl(number, IPC_RMID, None)
        for number in _of_user("sem", "semid", user):
            libc().semctl(number, 0, IPC_RMID)
        for number in _of_user("msg", "msqid", user):
            libc().msgctl(number, IPC_RMID, None)


def _of_user(kind: str, column: str, user: int) -> list[int]:
    """The ids of a user's System V objects."""
    with contextlib.suppress(OSError):
        header, *lines = Path(f"/proc/sysvipc/{kind}").read_text().splitlines()
        names = header.split()
        rows = [dict(zip(names, line.split(), strict=False)) for line in lines]
        return [int(row[column]) for row in rows if int(row["uid"]) == user]
    return []
