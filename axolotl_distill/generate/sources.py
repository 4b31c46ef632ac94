"""Rows of prompts out of files: JSON lines, Parquet, datasets of Hugging Face."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from axolotl_distill.config.generate import PromptsArgs
from axolotl_distill.disk.rows import (
    LINES,
    Line,
    Row,
    is_saved_dataset,
    json_rows,
    parquet_rows,
    saved_rows,
)
from axolotl_distill.errors import ConfigError, UnreadableError


class Source(NamedTuple):
    """rows: mappings, or the Line that is none. is_arrow: whether they come out of Arrow's typed
    columns, where a mapping has the keys of all others, as nulls."""

    rows: Iterator[Row | Line]
    is_arrow: bool


def open_source(args: PromptsArgs) -> Source:
    """Raises ConfigError for what is not there, and for files of a kind that is not known; and,
    while it is read, for what cannot be."""
    path = Path(args.path)
    if path.is_file() and path.name.endswith(LINES):
        lines = (line if line.row is None else line.row for line in json_rows(path))
        return Source(_named(lines), False)
    if path.is_file() and path.suffix == ".parquet":
        return Source(_named(parquet_rows(path)), True)
    if path.is_file():
        raise ConfigError(
            f"{path} (`generate.prompts`) is not read by its name; known are "
            f"{', '.join(LINES)}, .parquet, and folders of Hugging Face datasets."
        )
    return Source(_named(_dataset(args)), True)


def _named(rows: Iterable[Row | Line]) -> Iterator[Row | Line]:
    try:
        yield from rows
    except UnreadableError as error:
        raise ConfigError(f"`generate.prompts`: {error}") from error


def _dataset(args: PromptsArgs) -> Iterator[Row]:
    path = Path(args.path)
    if is_saved_dataset(path):
        yield from saved_rows(path, args.split)
        return
    import datasets

    try:
        found = datasets.load_dataset(args.path)
    except Exception as error:
        raise ConfigError(
            f"{args.path} (`generate.prompts`) is no file, and Hugging Face datasets cannot load "
            f"it: {error}"
        ) from error
    if args.split not in found:
        raise ConfigError(
            f"{args.path} has no split `{args.split}`; it has {', '.join(found)}. Set `split` in "
            "`generate.prompts`."
        )
    yield from found[args.split]
