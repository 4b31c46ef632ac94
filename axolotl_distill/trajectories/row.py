"""The row of text."""

from typing import TypedDict

from axolotl_distill.disk.rows import Row

__all__ = ["Row", "Usage"]


class Usage(TypedDict):
    """The server's own count of tokens."""

    prompt_tokens: int
    completion_tokens: int
