"""Rows of a file or folder, by number, without having them all in memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
                    f"{file}, at byte {at}: no JSON object: {error}. Mend or delete it."
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

    Raises CaptureError when there is none.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "state.json").exists():
            from datasets import load_from_disk

            return load_from_disk(str(path))
        files = sorted(path.glob("*.jsonl"))
    else:
        files = [path] if path.is_file() else []
    if files and files[0].suffix == ".parquet":
        from datasets import Dataset

        return Dataset.from_parquet([str(file) for file in files])
    rows = JsonLines(files)
    if not rows:
        raise CaptureError(
            f"{path} holds no rows. Give a .jsonl or .parquet file, a folder of .jsonl files, or a "
            "dataset that was saved with `save_to_disk`."
        )
    return rows
