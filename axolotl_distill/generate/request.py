"""What is asked of a teacher once, and what comes back."""

import hashlib
from dataclasses import dataclass
from typing import Any

from axolotl_distill.generate.prompts import Prompt


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
    finish_reason: str
    reasoning_content: str | None = None
    usage: dict[str, int] | None = None
    logprobs: list[dict[str, Any]] | None = None

    def row(self, request: Request, teacher: str) -> dict[str, Any]:
        """The trajectory's row; see `axolotl_distill.trajectories`."""
        return {
            "id": request.id,
            "prompt_id": request.prompt.id,
            "sample": request.sample,
            "messages": request.prompt.messages,
            "content": self.content,
            "reasoning_content": self.reasoning_content,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "logprobs": self.logprobs,
            "teacher": teacher,
            "meta": request.prompt.meta,
        }


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a teacher does not answer this one request; the next may well be answered."""

    reason: str

    def row(self, request: Request, teacher: str) -> dict[str, Any]:
        """What is kept of it, beside the trajectories."""
        return {
            "id": request.id,
            "reason": self.reason,
            "messages": request.prompt.messages,
            "teacher": teacher,
            "meta": request.prompt.meta,
        }
