"""`verify:`, a step of a recipe's `filter:`: its settings."""

import os
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_distill.config.block import Block

Method = Literal["math", "exact", "numeric", "regex", "reasoning_gym", "code"]

# Keys that only some methods read.
READ_BY = {
    "answer_extract": {"math", "exact", "numeric", "regex"},
    "tolerance": {"numeric"},
    "absolute_tolerance": {"numeric"},
    "ignore": {"exact"},
    "pattern": {"regex"},
    "entry": {"reasoning_gym"},
    "dataset": {"reasoning_gym"},
    "allow": {"code"},
    "entry_point": {"code"},
    "extract": {"math", "exact", "numeric", "regex", "reasoning_gym"},
    "answer": {"math", "exact", "numeric", "regex", "code"},
}
WAYS = "auto, boxed, last_number, last_line, whole, after:TEXT or tag:NAME"


class VerifyArgs(Block):
    """Compares the text after the thinking with a reference from the prompt's row."""

    method: Method = Field(
        description="math: equal as mathematics (math-verify). exact: the same text. numeric: the "
        "same number. regex: `pattern` is found. reasoning_gym: that package's own scorer. code: "
        "runs the code against tests."
    )
    answer: str | list[str] | None = Field(
        None,
        description="Column of the prompt's row with the reference; code: with the tests. Several "
        "columns, or a list in one, are several parts of an answer, compared in order. Default: "
        "answer; code: tests.",
    )
    min_score: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Rows at least this good are kept. The score is the share of parts that match, "
        "or of tests passed, or what reasoning_gym gives.",
    )
    extract: str | None = Field(
        None,
        description=f"How the final answer is found after the thinking: {WAYS}. auto: the last "
        "<answer>…</answer>, else \\boxed{…}, else what follows `answer:` or `answer is`, else the "
        "last line (math: math-verify's own search). Default: auto; regex: whole. code takes the "
        "last fenced block.",
    )
    answer_extract: str = Field(
        "whole",
        description="The same for the reference; `after:####` for GSM8K's.",
    )
    tolerance: float = Field(1e-6, ge=0.0, description="numeric: relative to the reference.")
    absolute_tolerance: float = Field(0.0, ge=0.0, description="numeric: in the answer's units.")
    ignore: list[Literal["case", "space", "punctuation"]] = Field(
        ["case", "space", "punctuation"],
        description="exact: what makes no difference; punctuation and quotes at either end only.",
    )
    pattern: str | None = Field(
        None,
        description="regex: a Python pattern; `{answer}` in it stands for the reference, escaped. "
        "Without it no reference is read.",
    )
    entry: str | None = Field(
        None,
        description="reasoning_gym: column with the whole entry. Default: the row's own columns "
        "`question`, `answer`, `metadata`. Objects may be JSON text.",
    )
    dataset: str | None = Field(
        None,
        description="reasoning_gym: whose scorer. Default: metadata's `source_dataset`.",
    )
    allow: bool = Field(
        False,
        description="code: must be true, for it runs what a model wrote. No security boundary.",
    )
    entry_point: str | None = Field(
        None,
        description="code: column with a function's name, for tests that define "
        "`check(candidate)` (HumanEval), or with `testtype: functional` (LiveCodeBench).",
    )
    timeout: float = Field(10.0, gt=0.0, description="Seconds a row; code: seconds a test.")
    memory_mb: int = Field(
        1024, ge=256, description="Address space of a verifying process, in MiB."
    )
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Rows verified at once."
    )

    @field_validator("extract", "answer_extract")
    @classmethod
    def _is_known_way(cls, value: str | None) -> str | None:
        if value is None or value in ("auto", "boxed", "last_number", "last_line", "whole"):
            return value
        way, _, what = value.partition(":")
        if way in ("after", "tag") and what.strip("\"' "):
            return value
        raise ValueError(f"it is one of {WAYS}")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value.replace("{answer}", "x"))
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"it is no Python regular expression: {error}") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_by_method(cls, values: Any) -> Any:
        if isinstance(values, dict):
            method = values.get("method")
            for key in values:
                readers = READ_BY.get(key)
                if readers and isinstance(method, str) and method not in readers:
                    raise ValueError(
                        f"`{key}` is not read by `method: {method}`, only by "
                        f"{', '.join(sorted(readers))}; remove it."
                    )
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> "VerifyArgs":
        if self.method == "code" and not self.allow:
            raise ValueError(
                "`method: code` runs what a model wrote, with limits that are no security "
                "boundary: do it in a container or a throw-away machine, and say so with "
                "`allow: true`."
            )
        if self.method == "code" and len(self.columns) != 1:
            raise ValueError("`method: code` takes its tests from one column; name it in `answer`.")
        if self.method == "regex" and self.pattern is None:
            raise ValueError("`method: regex` needs `pattern`, for example 'Answer: *{answer}$'.")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns with the reference, in order."""
        if self.answer is None:
            return ["tests" if self.method == "code" else "answer"]
        return [self.answer] if isinstance(self.answer, str) else self.answer
