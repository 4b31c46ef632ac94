"""Rows out of files: JSON lines, a JSON list, Parquet, datasets that Hugging Face's library saved.

One row at a time, with its number in the file, from 1; a line that is no row is told with the same
number. No row may be longer than LONGEST bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from axolotl_distill.errors import UnreadableError

Row = dict[str, Any]

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
LONGEST = 256 << 20
BATCH_ROWS = 1024


class Line(NamedTuple):
    """A line that is not blank.

    number  from 1, blank lines counted       start  its first byte in the file
    data    as it stands, line break and all  row    what it says; None where it is no JSON object
    fault   why it is none
    """

    number: int
    start: int
    data: bytes
    row: Row | None
    fault: str = ""

    @property
    def is_torn(self) -> bool:
        """Whether it may be what a killed writer left of its last line."""
        return self.row is None and not self.data.endswith(b"\n")


def json_lines(file: IO[bytes], parse: Callable[[bytes], Any] = json.loads) -> Iterator[Line]:
    """Every line of an open file. `parse` raises ValueError for what it does not take.

    Raises UnreadableError for a line longer than LONGEST.
    """
    number = start = 0
    while data := file.readline(LONGEST + 1):
        number += 1
        if len(data) > LONGEST:
            raise UnreadableError(f"line {number} is longer than {LONGEST:,} bytes")
        if data.strip():
            yield _line(number, start, data, parse)
        start += len(data)


def is_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    return _line(1, 0, line, json.loads).row is not None


def json_rows(path: Path) -> Iterator[Line]:
    """The lines of a file of JSON lines, plain or packed (.gz, .zst), or the elements of a file
    that is one JSON list, as if each stood on a line of its own.

    Raises UnreadableError for a file that cannot be read.
    """
    with _open(path) as file:
        head = file.peek(64).lstrip() if hasattr(file, "peek") else b""
        if head[:1] != b"[":
            yield from json_lines(file)
            return
        text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise UnreadableError(f"{path} is one list of more than {LONGEST:,} bytes")
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Line(1, 0, text, None, str(error))
            return
        for number, row in enumerate(rows, 1):
            fault = "" if isinstance(row, dict) else _no_object(row)
            yield Line(number, 0, json.dumps(row).encode(), None if fault else row, fault)


def parquet_rows(path: Path) -> Iterator[Row]:
    """Raises UnreadableError for a file that is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def parquet_table(path: Path) -> Sequence[Row]:
    """The rows of a Parquet file by number, out of the cache of `datasets`.

    Raises UnreadableError for a file that is none.
    """
    import datasets

    try:
        return datasets.Dataset.from_parquet(str(path))
    except Exception as error:
        # The library lets through what Arrow and fsspec raise.
        raise _unreadable(path, error.__cause__ or error) from error


def is_saved_dataset(path: Path) -> bool:
    """Whether `save_to_disk` of Hugging Face's datasets wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def saved_rows(path: Path, split: str | None = None) -> Sequence[Row]:
    """The rows of a saved dataset: of `split`, or of the only one that there is.

    Raises UnreadableError for a folder that cannot be read, and where the split is not there or
    was not named.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        # The library lets through what Arrow, fsspec and json raise.
        raise _unreadable(path, error) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    names = list(found)
    if split is None and len(names) == 1:
        return found[names[0]]
    if split not in found:
        asked = f"no split `{split}`; it has" if split else "the splits"
        raise UnreadableError(f"{path} has {asked} {', '.join(names)}. Name one of them.")
    return found[split]


class JsonLines(Sequence[Row]):
    """The rows of files of JSON lines by number, one after another; only where each begins is
    remembered. A last line that was torn off is passed over."""

    def __init__(self, files: Sequence[Path]):
        self._places: list[tuple[Path, int, int]] = []
        for file in files:
            with file.open("rb") as lines:
                self._places += [
                    (file, line.number, line.start)
                    for line in json_lines(lines)
                    if not line.is_torn
                ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # no slices
        """Raises UnreadableError for a line that is no JSON object."""
        file, number, start = self._places[index]
        with file.open("rb") as lines:
            lines.seek(start)
            line = next(json_lines(lines))
        if line.row is None:
            raise UnreadableError(
                f"{file}, line {number} (row {index + 1} of all) is not a JSON object: "
                f"{line.fault}. Mend or delete it."
            )
        return line.row


def _line(number: int, start: int, data: bytes, parse: Callable[[bytes], Any]) -> Line:
    try:
        row = parse(data)
    except (ValueError, RecursionError) as error:
        return Line(number, start, data, None, str(error))
    if not isinstance(row, dict):
        return Line(number, start, data, None, _no_object(row))
    return Line(number, start, data, row)


def _no_object(value: object) -> str:
    return f"it is a {type(value).__name__}, not an object"


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its name says that it is packed."""
    import io

    import pyarrow as pa

    try:
        with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as stream:
            yield stream
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UnreadableError:
    said = " ".join(str(error).split())[:300].removesuffix(".")
    return UnreadableError(
        f"{path} cannot be read: {said}. It may be damaged or cut off, or another kind of file "
        "than its name says."
    )
