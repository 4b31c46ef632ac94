"""Rows of a file or folder, by number, without having them all in memory."""

from collections.abc import Sequence
from pathlib import Path

from axolotl_distill.disk.rows import JsonLines, Row, is_saved_dataset, parquet_table, saved_rows
from axolotl_distill.errors import CaptureError, UnreadableError


def open_rows(path: str | Path) -> Sequence[Row]:
    """The rows of a .jsonl file, a folder of them, a .parquet file, or a saved HF dataset.

    Raises CaptureError when there is none, or it cannot be read.
    """
    path = Path(path)
    try:
        rows = _open(path)
    except (OSError, UnreadableError) as error:
        raise CaptureError(str(error)) from error
    if not len(rows):
        raise CaptureError(
            f"{path} holds no rows. Give a .jsonl or .parquet file, a folder of .jsonl files, or a "
            "dataset that was saved with `save_to_disk`."
        )
    return rows


def _open(path: Path) -> Sequence[Row]:
    if is_saved_dataset(path):
        return saved_rows(path)
    if path.is_file() and path.suffix == ".parquet":
        return parquet_table(path)
    if path.is_dir():
        return JsonLines(sorted(path.glob("*.jsonl")))
    return JsonLines([path] if path.is_file() else [])
