"""Counts over trajectories."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from axolotl_distill.recipe.generate import PriceArgs


@dataclass
class Tally:
    """Tokens are the server's own count; `without_usage` completions came without one."""

    completions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    refused: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Count a trajectory's row."""
        self.completions += 1
        self.finish_reasons[str(row.get("finish_reason"))] += 1
        if row.get("usage"):
            self.prompt_tokens += row["usage"]["prompt_tokens"]
            self.completion_tokens += row["usage"]["completion_tokens"]
        else:
            self.without_usage += 1

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def usd(prompt_tokens: int, completion_tokens: int, price: PriceArgs) -> float:
    """What the tokens cost."""
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6
