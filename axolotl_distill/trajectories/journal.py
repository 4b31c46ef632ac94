"""A file of JSON lines that only grows: what it has taken is there after any kill."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from axolotl_distill.errors import TrajectoryError

Row = dict[str, Any]


class Journal:
    """Appends rows to one file. A row counts when its line is whole: what a killed writer left of
    a line is cut off when the file is opened again. One writer a file; the caller sees to that.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        self._cut_torn_line()

    def append(self, rows: Iterable[Row]) -> None:
        """Returns when the rows are on the disk: one write and one fsync for all of them.

        Raises OSError when the disk takes them not; then none of them is in the file.
        """
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
        left = memoryview(_utf8("".join(line + "\n" for line in lines)))
        end = self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        position = end
        while position:
            start = max(0, position - 65_536)
            self._file.seek(start)
            newline = self._file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position != end:
            self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)


def _utf8(text: str) -> bytes:
    """Half an emoji, where a token limit cut it, becomes U+FFFD: UTF-8 has no halves."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def read_trajectories(path: str | Path) -> Iterator[Row]:
    """Every whole row of a `.jsonl` file, or of all `*.jsonl` files of a folder, sorted by name.

    Raises TrajectoryError for a path without such a file, and for a line that is no JSON object
    (a last line without a newline may be torn: it is passed over unless it is whole).
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise TrajectoryError(
            f"{path} holds no trajectories: there is no *.jsonl file. Check the path, or make them "
            "with `axolotl distill generate RECIPE.yml`."
        )
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"it is a {type(row).__name__}, not an object")
                except ValueError as error:
                    if not line.endswith(b"\n"):
                        continue
                    raise TrajectoryError(
                        f"{file}, line {number} is not a JSON object: {error}. Mend or delete it."
                    ) from error
                yield row
