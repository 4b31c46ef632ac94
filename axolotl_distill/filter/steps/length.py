"""The step `length`: characters and tokens within limits."""

from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field, model_validator

from axolotl_distill.config.block import Block
from axolotl_distill.filter.parts import part
from axolotl_distill.filter.step import ALONE, KEEP, Around, Candidate, Step, Verdict, registered
from axolotl_distill.filter.tokens import count_tokens, load_tokenizer


class LengthArgs(Block):
    """Neither too short nor too long."""

    of: Literal["all", "thinking", "answer"] = Field(
        "all", description="all: thinking and answer together."
    )
    min_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    min_chars: int | None = Field(None, ge=1)
    max_chars: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _limits(self) -> "LengthArgs":
        for unit in ("tokens", "chars"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}: nothing is left.")
        if all(getattr(self, key) is None for key in type(self).model_fields if key != "of"):
            raise ValueError("no limit given: set min_tokens, max_tokens, min_chars or max_chars.")
        return self


@registered
class LengthStep(Step[LengthArgs]):
    """Reasons: "shorter than 9 characters", "longer than 9 tokens", …"""

    kind = "length"
    Args = LengthArgs
    remedy = "See the details in `rejected/` for the lengths seen, and move the limits."

    def __init__(self, args: LengthArgs, around: Around = ALONE):
        super().__init__(args, around)
        self._tokenizer = load_tokenizer(around.tokenizer) if self.counts_tokens(args) else None

    @classmethod
    def counts_tokens(cls, args: LengthArgs) -> bool:
        return args.min_tokens is not None or args.max_tokens is not None

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Candidate) -> Verdict:
        text, args = part(row, self.args.of), self.args
        fault = _outside(len(text), args.min_chars, args.max_chars, "characters")
        if fault is None and self._tokenizer is not None:
            (tokens,) = count_tokens(self._tokenizer, [text])
            fault = _outside(tokens, args.min_tokens, args.max_tokens, "tokens")
        return fault or KEEP


def _outside(size: int, low: int | None, high: int | None, unit: str) -> Verdict | None:
    if low is not None and size < low:
        return Verdict(False, f"shorter than {low} {unit}", detail=f"{size} {unit}")
    if high is not None and size > high:
        return Verdict(False, f"longer than {high} {unit}", detail=f"{size} {unit}")
    return None
