"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

TEMPORARY = ".tmp"


@contextmanager
def atomically(path: Path) -> Iterator[BufferedRandom]:
    """A file, open for writing and reading, that appears at `path` when the context ends well:
    written under a temporary name, fsync, rename, fsync of the folder.

    What stood at `path` stays until then, and for good where the context ends in an error.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """All of `data` at `path`, or what was there before."""
    with atomically(path) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
