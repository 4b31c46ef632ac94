"""Rows out of files: JSON lines, Parquet, datasets of Hugging Face."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_distill.config.generate import PromptsArgs
from axolotl_distill.errors import ConfigError

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class UnreadableError(ValueError):
    """A line that is no row."""

    def __init__(self, message: str, line: bytes):
        super().__init__(message)
        self.text = line.decode(errors="replace")


class Source(NamedTuple):
    """rows: mappings, or the UnreadableError of a line. is_arrow: whether they come out of Arrow's
    typed columns, where a mapping has the keys of all others, as nulls."""

    rows: Iterator[dict[str, Any] | UnreadableError]
    is_arrow: bool


def open_source(args: PromptsArgs) -> Source:
    """Raises ConfigError for what is not there, and for files of a kind that is not known."""
    path = Path(args.path)
    if path.is_file() and path.name.endswith(LINES):
        return Source(_json_lines(path), False)
    if path.is_file() and path.suffix == ".parquet":
        return Source(_parquet(path), True)
    if path.is_file():
        raise ConfigError(
            f"{path} (`generate.prompts`) is not read by its name; known are "
            f"{', '.join(LINES)}, .parquet, and folders of Hugging Face datasets."
        )
    return Source(_dataset(args), True)


def _json_lines(path: Path) -> Iterator[dict[str, Any] | UnreadableError]:
    try:
        with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"it is a {type(row).__name__}")
                except (ValueError, RecursionError) as error:
                    row = UnreadableError(f"line {number} is not a JSON object: {error}", line)
                yield row
    except OSError as error:
        raise ConfigError(f"{path} (`generate.prompts`) cannot be read: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} (`generate.prompts`) cannot be read: {error}") from error


def _dataset(args: PromptsArgs) -> Iterator[dict[str, Any]]:
    import datasets

    try:
        if (Path(args.path) / "state.json").exists() or (
            Path(args.path) / "dataset_dict.json"
        ).exists():
            found = datasets.load_from_disk(args.path)
        else:
            found = datasets.load_dataset(args.path)
    except Exception as error:
        raise ConfigError(
            f"{args.path} (`generate.prompts`) is no file, and Hugging Face datasets cannot load "
            f"it: {error}"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if args.split not in found:
            raise ConfigError(
                f"{args.path} has no split `{args.split}`; it has "
                f"{', '.join(found)}. Set `split` in `generate.prompts`."
            )
        found = found[args.split]
    return iter(found)
