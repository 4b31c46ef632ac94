"""Steps that look at one row's text: format, thinking, length."""

import re
from collections.abc import Iterable, Iterator

from axolotl_distill.config.steps import FormatArgs, LengthArgs, ThinkingArgs
from axolotl_distill.filter.rows import calls_text, part
from axolotl_distill.filter.step import Verdict
from axolotl_distill.filter.tokens import count_tokens, load_tokenizer
from axolotl_distill.sandbox.workers import Failed, Workers
from axolotl_distill.trajectories import parts_of
from axolotl_distill.trajectories.finish import is_unfinished
from axolotl_distill.trajectories.journal import Row

KEEP = Verdict(True)
BOXED = re.compile(r"\\boxed\s*\{\s*[^\s}]")
MATCH_SECONDS = 10.0
MATCH_MEMORY_MB = 1024


def found(pattern: str, text: str) -> bool:
    """Whether the pattern is found. Can backtrack for ever, so it is called in a worker."""
    return re.search(pattern, text) is not None


class FormatStep:
    """Whole, answered, and written as asked."""

    name = "format"
    row_wise = True

    def __init__(self, args: FormatArgs):
        self.args = args
        self._workers: Workers | None = None

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Row) -> Verdict:
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
            reason = seen.reason.replace("verifier", "match")
            return Verdict(False, reason, detail=f"{pattern} {seen.detail}")
        if not seen:
            return Verdict(False, f"does not match {pattern}", detail=f"…{answer[-100:]}")
        return KEEP

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None


class ThinkingStep:
    """Thinking is there, closed, and not a token gesture."""

    name = "thinking"
    row_wise = True

    def __init__(self, args: ThinkingArgs, tokenizer: str | None):
        self.args = args
        self.tokenizer = load_tokenizer(tokenizer) if args.min_tokens else None

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Row) -> Verdict:
        thinking = part(row, "thinking")
        if not thinking:
            return Verdict(False, "no thinking")
        if parts_of(row).form == "unclosed":
            return Verdict(False, "thinking not closed")
        if len(thinking) < self.args.min_chars:
            return Verdict(False, "thinking too short", detail=f"{len(thinking)} characters")
        if self.tokenizer is not None:
            (tokens,) = count_tokens(self.tokenizer, [thinking])
            if tokens < self.args.min_tokens:
                return Verdict(False, "thinking too short", detail=f"{tokens} tokens")
        return KEEP


class LengthStep:
    """Characters and tokens within limits."""

    name = "length"
    row_wise = True

    def __init__(self, args: LengthArgs, tokenizer: str | None):
        self.args = args
        counts = args.min_tokens is not None or args.max_tokens is not None
        self.tokenizer = load_tokenizer(tokenizer) if counts else None

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        return map(self._judge, rows)

    def _judge(self, row: Row) -> Verdict:
        text, args = part(row, self.args.of), self.args
        fault = _outside(len(text), args.min_chars, args.max_chars, "characters")
        if fault is None and self.tokenizer is not None:
            (tokens,) = count_tokens(self.tokenizer, [text])
            fault = _outside(tokens, args.min_tokens, args.max_tokens, "tokens")
        return fault or KEEP


def _outside(size: int, low: int | None, high: int | None, unit: str) -> Verdict | None:
    if low is not None and size < low:
        return Verdict(False, f"shorter than {low} {unit}", detail=f"{size} {unit}")
    if high is not None and size > high:
        return Verdict(False, f"longer than {high} {unit}", detail=f"{size} {unit}")
    return None
