"""The trajectories as the filter reads them: checked, with every field there."""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.filter.source import read_source
from axolotl_distill.show import printable
from axolotl_distill.trajectories import split_thinking
from axolotl_distill.trajectories.journal import Row

MESSAGE = ("role", "content")  # what is read of a message, and written
DEFAULTS: dict[str, Any] = {
    "sample": 0,
    "reasoning_content": None,
    "finish_reason": None,
    "usage": None,
    "logprobs": None,
    "teacher": None,
    "meta": None,
}


def read_rows(path: str | Path) -> Iterator[Row]:
    """Every trajectory of a file or folder, in the order of `read_source`.

    Only messages and content must be there, and id and prompt_id beside them. Raises
    TrajectoryError, with file and row, for a row that is not one.
    """
    for where, row in read_source(path):
        fault = _fault(row)
        if fault:
            raise TrajectoryError(
                f"{where} is not a trajectory: {printable(fault)}. Mend or delete it; the fields "
                "are listed in axolotl_distill/trajectories/__init__.py."
            )
        row = {**DEFAULTS, **row}
        row["content"] = row["content"] or ""
        row["meta"] = row["meta"] or {}
        yield row


def _fault(row: Row) -> str | None:
    for key in ("id", "prompt_id"):
        if not isinstance(row.get(key), str) or not row[key]:
            return f"`{key}` must be a string, and is {row.get(key)!r}"
    if "content" not in row or not isinstance(row["content"], str | None):
        return f"`content` must be a string, and is {row.get('content')!r}"
    if not isinstance(row.get("reasoning_content"), str | None):
        return f"`reasoning_content` must be a string or null, and is {row['reasoning_content']!r}"
    if not isinstance(row.get("meta"), dict | None):
        return f"`meta` must be a mapping, and is {row['meta']!r}"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return f"`messages` must be a list of messages, and is {messages!r}"
    for message in messages:
        texts = (message.get(key) for key in MESSAGE) if isinstance(message, dict) else (None,)
        if not all(isinstance(text, str) for text in texts):
            return (
                "a message needs `role` and `content`, both text (images and calls of tools "
                f"without text have no place in the dataset), and one is {message!r:.300}"
            )
    return None


def part(row: Row, of: str) -> str:
    """The row's "thinking", "answer", "prompt" (system messages aside), or "all" it wrote."""
    if of == "prompt":
        return "\n".join(m["content"] for m in row["messages"] if m["role"] != "system")
    thinking, answer = split_thinking(row["content"], row["reasoning_content"])
    if of == "thinking":
        return thinking or ""
    return answer if of == "answer" else "\n".join(filter(None, (thinking, answer)))


def plain(text: str) -> str:
    """Without differences in white space and case."""
    return " ".join(text.split()).casefold()


def text_hash(text: str, salt: str = "") -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(f"{salt}\0{text}".encode(), digest_size=8).digest())
