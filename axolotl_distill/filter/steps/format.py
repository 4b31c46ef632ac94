"""The step `format`: whole, answered, and written as asked."""

import re
from collections.abc import Iterable, Iterator

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block
from axolotl_distill.filter.parts import calls_text, part
from axolotl_distill.filter.step import ALONE, KEEP, Around, Candidate, Step, Verdict, registered
from axolotl_distill.sandbox import Failed, Pool
from axolotl_distill.sandbox.workers import Workers
from axolotl_distill.trajectories.finish import is_unfinished

BOXED = re.compile(r"\\boxed\s*\{\s*[^\s}]")
MATCH_SECONDS = 10.0
MATCH_MEMORY_MB = 1024


class FormatArgs(Block):
    """Is the answer whole, and written as asked?"""

    finished: bool = Field(
        True,
        description="Drop what did not end by itself: cut off by the token limit, held back by a "
        "filter, or given up by the server.",
    )
    answer: bool = Field(True, description="Drop what has no answer after its thinking.")
    match: str | None = Field(None, description="Regular expression found in a good answer.")
    boxed: bool = Field(False, description="The answer has a \\boxed{…} with something in it.")

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"this is no regular expression: {error}") from None
        return value


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is found. Can backtrack for ever, so it is called in a worker."""
    return re.search(pattern, text) is not None


@registered
class FormatStep(Step[FormatArgs]):
    """Reasons: "not finished: …" (the server's word), "no answer", "no \\boxed{…}", "does not match
    …", and a worker's "match timed out"."""

    kind = "format"
    Args = FormatArgs
    remedy = (
        "Answers cut off need a larger `generate.max_tokens`; a form that the teacher does not "
        "keep has to be asked for in `generate.system`."
    )

    def __init__(self, args: FormatArgs, around: Around = ALONE):
        super().__init__(args, around)
        self._workers: Pool | None = None

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Candidate) -> Verdict:
        if self.args.finished and is_unfinished(row["finish_reason"]):
            reason = f"not finished: {row['finish_reason']}"
            return Verdict(False, reason, detail=f"…{row['content'][-100:]}")
        answer = part(row, "answer")
        if self.args.answer and not answer and not calls_text(row):
            return Verdict(False, "no answer")
        if self.args.boxed and not BOXED.search(answer):
            return Verdict(False, "no \\boxed{…}", detail=f"…{answer[-100:]}")
        return self._match(self.args.match, answer) if self.args.match else KEEP

    def _match(self, pattern: str, answer: str) -> Verdict:
        if self._workers is None:
            self._workers = Workers(f"{__name__}:found", count=1, memory_mb=MATCH_MEMORY_MB)
        seen = self._workers.submit(pattern, answer, timeout=MATCH_SECONDS).result()
        if isinstance(seen, Failed):
            return Verdict(False, f"match {seen.reason}", detail=f"{pattern} {seen.detail}")
        if not seen:
            return Verdict(False, f"does not match {pattern}", detail=f"…{answer[-100:]}")
        return KEEP

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None
