"""The row of text."""

from typing import NotRequired, TypedDict

from axolotl_distill.disk.rows import Row
from axolotl_distill.trajectories.thinking import Form

__all__ = ["Row", "Trajectory", "Usage"]


class Usage(TypedDict):
    """The server's own count of tokens."""

    prompt_tokens: int
    completion_tokens: int


class Trajectory(TypedDict):
    """One answer with its prompt; `axolotl_distill.trajectories` says what each field is."""

    id: str
    prompt_id: str
    sample: int
    messages: list[Row]
    tools: list[Row] | None
    content: str
    reasoning_content: str | None
    thinking_form: Form | None
    message: Row | None
    finish_reason: str | None
    usage: Usage | None
    logprobs: list[Row] | None
    teacher: str | None
    meta: Row
    seal: NotRequired[str]
