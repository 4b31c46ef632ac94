"""Rows of a file or folder, by number, without having them all in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from datasets.exceptions import DatasetsError

from axolotl_distill.errors import CaptureError

Row = dict[str, Any]


class JsonLines(Sequence[Row]):
    """The rows of JSON lines files, one after another; only where each begins is remembered. A
    last line that was torn off is passed over."""

    def __init__(self, files: Sequence[Path]):
        self._places: list[tuple[Path, int]] = []
        for file in files:
            with file.open("rb") as lines:
                at = 0
                for line in lines:
                    if line.strip() and (line.endswith(b"\n") or _is_whole(line)):
                        self._places.append((file, at))
                    at += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        file, at = self._places[index]
        with file.open("rb") as lines:
            lines.seek(at)
            try:
                row = json.loads(lines.readline())
                if not isinstance(row, dict):
                    raise ValueError(f"it is a {type(row).__name__}")
            except ValueError as error:
                raise CaptureError(
                    f"{file}, row {index + 1} of all (byte {at}): no JSON object: {error}. Mend or "
                    "delete it."
                ) from error
        return row


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def open_rows(path: str | Path) -> Sequence[Row]:
    """The rows of a .jsonl file, a folder of them, a .parquet file, or a saved HF dataset.

    Raises CaptureError when there is none, or it cannot be read.
    """
    path = Path(path)
    try:
        rows = _open(path)
    except (OSError, ValueError, DatasetsError) as error:
        raise CaptureError(f"{path} cannot be read: {error.__cause__ or error}.") from error
    if not len(rows):
        raise CaptureError(
            f"{path} holds no rows. Give a .jsonl or .parquet file, a folder of .jsonl files, or a "
            "dataset that was saved with `save_to_disk`."
        )
    return rows


def _open(path: Path) -> Sequence[Row]:
    if (path / "state.json").exists():
        return load_from_disk(str(path))
    if path.is_file() and path.suffix == ".parquet":
        return Dataset.from_parquet(str(path))
    if path.is_dir():
        return JsonLines(sorted(path.glob("*.jsonl")))
    return JsonLines([path] if path.is_file() else [])
