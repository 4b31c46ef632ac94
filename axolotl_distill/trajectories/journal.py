"""A file of JSON lines that only grows: what it has taken is there after any kill."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.trajectories.plain import is_damaged, whole
from axolotl_distill.trajectories.row import Row


class Damage(NamedTuple):
    """A line that is no row, or no longer the one that was written."""

    file: Path
    number: int
    line: bytes
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.number} {self.reason}"


class Journal:
    """Appends rows to one file. What a killed writer left of a row is cut off when the file is
    opened again; a row that lacks only its line break gets it. One writer a file; the caller sees
    to that.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        self._mend_last_line()

    def append(self, rows: Iterable[Row]) -> None:
        """Returns when the rows are on the disk: one write and one fsync for all of them.

        Raises OSError when the disk takes them not; then none of them is in the file.
        """
        lines = [_line(row) for row in rows]
        left = memoryview(b"".join(lines))
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

    def _mend_last_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start and b"\n" not in tail:
            step = min(start, 65_536)
            start = self._file.seek(start - step)
            tail = self._file.read(step) + tail
        last = tail.rpartition(b"\n")[2]
        if _is_row(last):
            self._file.write(b"\n")
        else:
            self._file.truncate(end - len(last))
        self._file.seek(0, os.SEEK_END)


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _line(row: Row) -> bytes:
    """Half an emoji, where a token limit cut it, becomes U+FFFD."""
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _line(whole(row))


def refuse(damage: Damage) -> None:
    raise TrajectoryError(f"{damage}. Mend or delete it.")


def read_trajectories(
    path: str | Path, damaged: Callable[[Damage], None] = refuse
) -> Iterator[Row]:
    """Every whole row of a `.jsonl` file, or of all `*.jsonl` files of a folder, sorted by name.

    damaged  is told of a line that is no JSON object, or does not fit its `seal`; by default that
             is a TrajectoryError. A last line without a newline may be torn: it is passed over
             unless it is whole

    Raises TrajectoryError for a path without such a file.
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
                except (ValueError, RecursionError) as error:
                    if line.endswith(b"\n"):
                        damaged(Damage(file, number, line, f"is not a JSON object: {error}"))
                    continue
                if is_damaged(row):
                    damaged(
                        Damage(file, number, line, "is not what was written: its `seal` differs")
                    )
                    continue
                yield whole(row) if b"\\u" in line else row
