"""What is asked of a teacher once, and what comes back."""

import hashlib
from dataclasses import dataclass
from typing import TypedDict

from axolotl_distill.generate.prompts import Prompt
from axolotl_distill.trajectories import Row, Trajectory, Usage, sealed
from axolotl_distill.trajectories.thinking import Form

# What of a message says something beside its content and its thinking.
SAYING = ("tool_calls", "function_call", "refusal", "audio", "images")
EMPTY = (
    "the answer is empty: no text, no thinking and no call of a tool (it ended with {reason}). It "
    "is asked for again with the next run; if it stays empty, look at the prompt and `max_tokens`"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One completion of one prompt."""

    prompt: Prompt
    sample: int

    @property
    def id(self) -> str:
        return f"{self.prompt.id}-{self.sample}"

    def seed(self, seed: int | None) -> int | None:
        """This request's own seed, 31 bits, whatever else is asked with it."""
        if seed is None:
            return None
        digest = hashlib.sha256(f"{seed}/{self.id}".encode()).digest()
        return int.from_bytes(digest[:4]) >> 1


@dataclass(frozen=True, slots=True)
class Completion:
    """What a teacher wrote; the fields are those of a trajectory's row."""

    content: str
    finish_reason: str | None
    reasoning_content: str | None = None
    thinking_form: Form = "none"
    message: Row | None = None
    usage: Usage | None = None
    logprobs: list[Row] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said: no text, no thinking, no call, no refusal."""
        others = [(self.message or {}).get(key) for key in SAYING]
        return not (self.content.strip() or self.reasoning_content or any(others))

    def row(self, request: Request, teacher: str) -> Trajectory:
        """The trajectory's row; see `axolotl_distill.trajectories`."""
        row: Trajectory = {
            "id": request.id,
            "prompt_id": request.prompt.id,
            "sample": request.sample,
            "messages": request.prompt.messages,
            "tools": request.prompt.tools,
            "content": self.content,
            "reasoning_content": self.reasoning_content,
            "thinking_form": self.thinking_form,
            "message": self.message,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "logprobs": self.logprobs,
            "teacher": teacher,
            "meta": request.prompt.meta,
        }
        return sealed(row)


class Refusal(TypedDict):
    """What is kept, beside the trajectories, of a request that was not answered."""

    id: str
    reason: str
    messages: list[Row]
    tools: list[Row] | None
    usage: Usage | None
    teacher: str
    meta: Row


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer to this one request; the next may well be answered.

    usage  what it cost all the same
    """

    reason: str
    usage: Usage | None = None

    def row(self, request: Request, teacher: str) -> Refusal:
        return {
            "id": request.id,
            "reason": self.reason,
            "messages": request.prompt.messages,
            "tools": request.prompt.tools,
            "usage": self.usage,
            "teacher": teacher,
            "meta": request.prompt.meta,
        }
