"""A file that only grows: what it has taken is there after any kill."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from axolotl_distill.disk.rows import is_object

BLOCK = 1 << 16


class Journal:
    """Appends to one file. One writer a file; the caller sees to that.

    What a killed writer left of a line is cut off when the file is opened again; a line that lacks
    only its line break gets it.

    is_whole   whether a last line without its line break is all of a line; None for a file that is
               not made of lines, whose torn end the caller finds and cuts
    """

    def __init__(self, path: Path, is_whole: Callable[[bytes], bool] | None = is_object):
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a+b", buffering=0)
        if is_whole is not None:
            self._mend_last_line(is_whole)

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self.file.fileno()).st_size

    def append(self, data: bytes, *, sync: bool = True) -> None:
        """Returns when all of `data` would survive a kill of this process, and with `sync` a power
        cut. Raises OSError when the disk takes it not; then none of it is in the file."""
        end = self.size
        try:
            left = memoryview(data)
            while left:
                left = left[self.file.write(left) :]
            if sync:
                self.sync()
        except OSError:
            self.cut(end)
            raise

    def sync(self) -> None:
        """Returns when everything that was appended would survive a power cut."""
        os.fsync(self.file.fileno())

    def cut(self, size: int) -> None:
        """Forget what lies beyond the first `size` bytes."""
        self.file.truncate(size)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mend_last_line(self, is_whole: Callable[[bytes], bool]) -> None:
        start, tail = self.size, b""
        while start and b"\n" not in tail:
            step = min(start, BLOCK)
            start = self.file.seek(start - step)
            tail = self.file.read(step) + tail
        last = tail.rpartition(b"\n")[2]
        if last and is_whole(last):
            self.append(b"\n")
        elif last:
            self.cut(self.size - len(last))
