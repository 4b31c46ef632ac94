"""What a recipe says of `verify`."""

import os
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_distill.config.block import Block, ReadBy

Method = Literal["math", "exact", "numeric", "regex", "reasoning_gym", "code"]
Indifferent = Literal["case", "space", "punctuation"]
TEXTUAL = ("math", "exact", "numeric", "regex")
WAYS = "auto, boxed, last_number, last_line, whole, after:TEXT or tag:NAME"


class VerifyArgs(Block):
    """Compares the text after the thinking with a reference from the prompt's row."""

    method: Method = Field(
        description="math: equal as mathematics (math-verify). exact: the same text. numeric: the "
        "same number. regex: `pattern` is found. reasoning_gym: that package's own scorer. code: "
        "runs the code against tests."
    )
    answer: Annotated[str | list[str] | None, ReadBy("method", *TEXTUAL, "code")] = Field(
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
    extract: Annotated[str | None, ReadBy("method", *TEXTUAL, "reasoning_gym")] = Field(
        None,
        description=f"How the final answer is found after the thinking: {WAYS}. auto: the last "
        "<answer>…</answer>, else \\boxed{…}, else what follows `answer:` or `answer is`, else the "
        "last line (math: math-verify's own search). Default: auto; regex: whole. code takes the "
        "last fenced block.",
    )
    answer_extract: Annotated[str, ReadBy("method", *TEXTUAL)] = Field(
        "whole",
        description="The same for the reference; `after:####` for GSM8K's.",
    )
    tolerance: Annotated[float, ReadBy("method", "numeric")] = Field(
        1e-6, ge=0.0, description="numeric: relative to the reference."
    )
    absolute_tolerance: Annotated[float, ReadBy("method", "numeric")] = Field(
        0.0, ge=0.0, description="numeric: in the answer's units."
    )
    ignore: Annotated[list[Indifferent], ReadBy("method", "exact")] = Field(
        ["case", "space", "punctuation"],
        description="exact: what makes no difference; punctuation and quotes at either end only.",
    )
    pattern: Annotated[str | None, ReadBy("method", "regex")] = Field(
        None,
        description="regex: a Python pattern; `{answer}` in it stands for the reference, escaped. "
        "Without it no reference is read.",
    )
    entry: Annotated[str | None, ReadBy("method", "reasoning_gym")] = Field(
        None,
        description="reasoning_gym: column with the whole entry. Default: the row's own columns "
        "`question`, `answer`, `metadata`. Objects may be JSON text.",
    )
    dataset: Annotated[str | None, ReadBy("method", "reasoning_gym")] = Field(
        None,
        description="reasoning_gym: whose scorer. Default: metadata's `source_dataset`.",
    )
    allow: Annotated[bool, ReadBy("method", "code")] = Field(
        False,
        description="code: must be true, for it runs what a model wrote. No security boundary.",
    )
    entry_point: Annotated[str | None, ReadBy("method", "code")] = Field(
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
