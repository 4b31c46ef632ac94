"""The step `thinking`: it is there, closed, and not a token gesture."""

from collections.abc import Iterable, Iterator

from pydantic import Field

from axolotl_distill.config.block import Block
from axolotl_distill.filter.parts import part
from axolotl_distill.filter.step import ALONE, KEEP, Around, Candidate, Step, Verdict, registered
from axolotl_distill.filter.tokens import count_tokens, load_tokenizer
from axolotl_distill.trajectories import parts_of


class ThinkingArgs(Block):
    """Is there thinking before the answer?"""

    min_chars: int = Field(1, ge=1)
    min_tokens: int | None = Field(None, ge=1)


@registered
class ThinkingStep(Step[ThinkingArgs]):
    """Reasons: "no thinking", "thinking not closed", "thinking too short"."""

    kind = "thinking"
    Args = ThinkingArgs
    remedy = "Does this teacher think, and does its server pass the thinking on?"

    def __init__(self, args: ThinkingArgs, around: Around = ALONE):
        super().__init__(args, around)
        self._tokenizer = load_tokenizer(around.tokenizer) if self.counts_tokens(args) else None

    @classmethod
    def counts_tokens(cls, args: ThinkingArgs) -> bool:
        return args.min_tokens is not None

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Candidate) -> Verdict:
        thinking = part(row, "thinking")
        if not thinking:
            return Verdict(False, "no thinking")
        if parts_of(row).form == "unclosed":
            return Verdict(False, "thinking not closed")
        if len(thinking) < self.args.min_chars:
            return Verdict(False, "thinking too short", detail=f"{len(thinking)} characters")
        if self._tokenizer is not None:
            (tokens,) = count_tokens(self._tokenizer, [thinking])
            if tokens < (self.args.min_tokens or 0):
                return Verdict(False, "thinking too short", detail=f"{tokens} tokens")
        return KEEP
