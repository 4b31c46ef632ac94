"""The row of text."""

from typing import Any, TypedDict

Row = dict[str, Any]
"""A JSON object: a line of a file, a trajectory, a message."""


class Usage(TypedDict):
    """The server's own count of tokens."""

    prompt_tokens: int
    completion_tokens: int
