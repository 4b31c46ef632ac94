"""Prompts out of files, as chat messages with an id."""

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_distill.errors import ConfigError
from axolotl_distill.recipe.generate import PromptsArgs

Row = dict[str, Any]
Messages = list[Row]
COLUMNS = ("messages", "prompt", "question", "instruction")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True, slots=True)
class Prompt:
    """id: a hash of the messages, and the occurrence ("…-2" … ) where they were there before.
    meta: the row's other columns, as plain JSON."""

    id: str
    messages: Messages
    meta: Row


def read_prompts(
    sources: list[PromptsArgs], system: str | None = None, limit: int | None = None
) -> list[Prompt]:
    """The prompts of all sources in order, each with the system prompt in front.

    `limit` keeps the first so many of all. Raises ConfigError for a file or column that is not
    there, and for a row that holds no prompt; it names the row.
    """
    return list(islice(_prompts(sources, system), limit))


def with_examples(messages: Messages, examples: Messages) -> Messages:
    """What the teacher is asked: the examples stand before the prompt, after its system message."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    return [*system, *examples, *messages[len(system) :]]


def _prompts(sources: list[PromptsArgs], system: str | None) -> Iterator[Prompt]:
    seen: Counter[str] = Counter()
    for source in sources:
        for number, row in enumerate(islice(_rows(source), source.limit), 1):
            try:
                messages, meta = _split(row, source)
                messages = _with_system(messages, system)
                meta = {name: _plain(value, name) for name, value in meta.items()}
            except ValueError as error:
                raise ConfigError(f"{source.path}, row {number}: {error}") from None
            text = json.dumps(messages, ensure_ascii=False, sort_keys=True)
            name = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
            seen[name] += 1
            again = f"-{seen[name]}" if seen[name] > 1 else ""
            yield Prompt(name + again, messages, meta)


def _rows(source: PromptsArgs) -> Iterator[Row]:
    path = Path(source.path)
    if path.is_file() and path.name.endswith(LINES):
        yield from _json_lines(path)
    elif path.is_file() and path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    elif path.is_file():
        raise ConfigError(
            f"{path} (`generate.prompts`) is not read by its name; known are "
            f"{', '.join(LINES)}, .parquet, and folders of Hugging Face datasets."
        )
    else:
        yield from _dataset(source)


def _json_lines(path: Path) -> Iterator[Row]:
    with io.BufferedReader(pa.input_stream(str(path), compression="detect")) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"it is a {type(row).__name__}")
            except ValueError as error:
                raise ConfigError(f"{path}, line {number} is not a JSON object: {error}") from None
            yield row


def _dataset(source: PromptsArgs) -> Iterator[Row]:
    import datasets

    try:
        if (Path(source.path) / "state.json").exists() or (
            Path(source.path) / "dataset_dict.json"
        ).exists():
            found = datasets.load_from_disk(source.path)
        else:
            found = datasets.load_dataset(source.path)
    except Exception as error:
        raise ConfigError(
            f"{source.path} (`generate.prompts`) is no file, and Hugging Face datasets cannot load "
            f"it: {error}"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if source.split not in found:
            raise ConfigError(
                f"{source.path} has no split `{source.split}`; it has "
                f"{', '.join(found)}. Set `split` in `generate.prompts`."
            )
        found = found[source.split]
    return iter(found)


def _split(row: Row, source: PromptsArgs) -> tuple[Messages, Row]:
    """(what to ask, the columns that go with it)."""
    named = source.messages or source.prompt
    column = named or next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None or row.get(column) is None:
        raise ValueError(
            f"there is no {f'`{column}`' if column else 'prompt'}; it has {', '.join(row)}. Name "
            f"the column with `prompt:` or `messages:` (default: the first of {', '.join(COLUMNS)})"
        )
    meta = {name: value for name, value in row.items() if name != column}
    asked = row[column]
    if isinstance(asked, str) and not asked.strip():
        raise ValueError(f"`{column}` is empty")
    if isinstance(asked, str):
        # Alpaca's layout: what the instruction is about is in a column of its own.
        about = meta.pop("input", None) if column == "instruction" else None
        return [{"role": "user", "content": f"{asked}\n\n{about}" if about else asked}], meta
    if not isinstance(asked, list):
        raise ValueError(f"`{column}` is a {type(asked).__name__}, not text or a list of messages")
    messages = [_message(message, column) for message in asked]
    while messages and messages[-1]["role"] == "assistant":
        # A finished chat: its answer is what the teacher is to write, and a reference for filters.
        meta["original_answer"] = messages.pop().get("content")
    if not messages:
        raise ValueError(f"`{column}` has no message to answer")
    return messages, meta


def _message(message: Any, column: str) -> Row:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(
            f"`{column}` must be a list of messages {{role, content}}; one is {message!r:.200}"
        )
    if message.get("content") is None and not message.get("tool_calls"):
        raise ValueError(f"a message of `{column}` has no `content`: {message!r:.200}")
    # Arrow gives every message the keys of all, null where it has none.
    return {name: _plain(value, name) for name, value in message.items() if value is not None}


def _with_system(messages: Messages, system: str | None) -> Messages:
    if system is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _plain(value: Any, name: str) -> Any:
    """What JSON can hold, the same for every reader: dates as text, NaN as null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes | bytearray) or not hasattr(value, "isoformat"):
        raise ValueError(f"`{name}` holds a {type(value).__name__}, which is not text; remove it")
    return value.isoformat()
