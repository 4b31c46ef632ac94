"""A file of JSON lines that only grows: what it has taken is there after any kill."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from axolotl_distill.disk import journal
from axolotl_distill.disk.rows import json_lines
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
    """Appends rows to one file; see `disk.journal.Journal`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = journal.Journal(self.path)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Returns when the rows are on the disk: one write and one fsync for all of them.

        Raises OSError when the disk takes them not; then none of them is in the file.
        """
        self._file.append(b"".join(map(_line, rows)))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(row: Mapping[str, Any]) -> bytes:
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
            for line in json_lines(lines):
                if line.row is None:
                    if not line.is_torn:
                        reason = f"is not a JSON object: {line.fault}"
                        damaged(Damage(file, line.number, line.data, reason))
                elif is_damaged(line.row):
                    reason = "is not what was written: its `seal` differs"
                    damaged(Damage(file, line.number, line.data, reason))
                else:
                    yield whole(line.row) if b"\\u" in line.data else line.row
