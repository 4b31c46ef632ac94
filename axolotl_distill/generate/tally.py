"""Counts over trajectories."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TypedDict

from axolotl_distill.config.generate import PriceArgs
from axolotl_distill.generate.request import SAYING
from axolotl_distill.trajectories import Trajectory, Usage, ending


class Counted(TypedDict):
    """All that is counted of a trajectory. marks: what somebody should hear of it, if there are
    many of its kind."""

    usage: Usage | None
    finish_reason: str | None
    marks: list[str]


def counted(row: Trajectory) -> Counted:
    return {"usage": row["usage"], "finish_reason": row["finish_reason"], "marks": _marks(row)}


@dataclass
class Tally:
    """Tokens are the server's own count; `without_usage` completions came without one."""

    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    refused: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)

    def add(self, row: Counted) -> None:
        self.completions += 1
        self.finish_reasons[str(row["finish_reason"])] += 1
        self.marks.update(row["marks"])
        if row["usage"]:
            self.prompt_tokens += row["usage"]["prompt_tokens"]
            self.completion_tokens += row["usage"]["completion_tokens"]
        else:
            self.without_usage += 1

    def ended(self, how: str) -> dict[str, int]:
        """The finish reasons that mean `how` (see `ending`), and how often each came."""
        return {name: n for name, n in self.finish_reasons.items() if ending(name) == how}

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usd(prompt_tokens: int, completion_tokens: int, price: PriceArgs) -> float:
    """What the tokens cost."""
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6


def _marks(row: Trajectory) -> list[str]:
    message = row.get("message") or {}
    found: list[str] = [row.get("thinking_form") or "none"]
    found += ["refusal"] if message.get("refusal") else []
    found += ["calls"] if message.get("tool_calls") or message.get("function_call") else []
    if not (row.get("content") or "").strip() and not any(message.get(key) for key in SAYING):
        found.append("no answer")
    return found
