"""`filter.steps` of a recipe: the settings of every step."""

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from axolotl_distill.config.block import Block, PathText, ReadBy
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.config.teacher import ModelArgs
from axolotl_distill.config.verify import VerifyArgs

Of = Literal["all", "thinking", "answer"]

# Keys whose values are columns of the prompts' rows.
COLUMN_KEYS = {"verify": ("answer", "entry", "entry_point"), "judge": ("reference",)}


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


class ThinkingArgs(Block):
    """Is there thinking before the answer?"""

    min_chars: int = Field(1, ge=1)
    min_tokens: int | None = Field(None, ge=1)


class LengthArgs(Block):
    """Neither too short nor too long."""

    of: Of = Field("all", description="all: thinking and answer together.")
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


class LanguageArgs(Block):
    """Only these languages. Code, formulas and numbers are no language and are not looked at."""

    allow: list[str] = Field(["en"], min_length=1, description="ISO 639-1 codes.")
    of: Of = Field("all", description="all: thinking and answer, each by itself.")
    max_other: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of a text that may be in other languages."
    )
    min_confidence: float = Field(0.0, ge=0.0, le=1.0)
    min_letters: int = Field(
        40,
        ge=1,
        description="A text with fewer letters cannot be told apart: it is kept, unless most of it "
        "is in a script that no allowed language has.",
    )


class DeduplicateArgs(Block):
    """Of rows that say the same, the first is kept."""

    method: Literal["exact", "near"] = Field(
        "exact",
        description="exact: up to white space. near: Jaccard similarity of word 5-grams, by "
        "MinHash.",
    )
    threshold: Annotated[float, ReadBy("method", "near")] = Field(
        0.8, gt=0.0, lt=1.0, description="near: similarity of a duplicate."
    )
    of: Literal["all", "thinking", "answer", "prompt"] = Field(
        "all",
        description="prompt: all rows of a prompt go when an earlier prompt says the same.",
    )
    within: Annotated[Literal["prompt", "dataset"], ReadBy("of", unless=("prompt",))] = Field(
        "prompt",
        description="Compare with rows of the same prompt, or with all; prompts always with all.",
    )


class JudgeArgs(Block):
    """A language model behind a server grades every row."""

    server: ServerArgs
    model: str = Field(description="As the server calls it.")
    rubric: str = Field(
        "Is the answer correct, complete and clearly written?", description="What to grade."
    )
    prompt: str | None = Field(
        None,
        description="In place of the built-in prompt. {rubric}, {question}, {thinking}, {answer}, "
        "{reference} and {max_score} are filled in. It must ask for a last line `Score: N`.",
    )
    reference: str | None = Field(
        None, description="Column of the prompts with the reference answer, shown to the judge."
    )
    max_score: float = Field(10.0, gt=0.0, description="Scores run from 0 to this.")
    min_score: float | None = Field(None, description="Drop below it; default: only score.")
    max_tokens: int = Field(1024, ge=1, description="Of the judge's answer.")
    temperature: float = Field(0.0, ge=0.0)

    @model_validator(mode="after")
    def _reachable(self) -> "JudgeArgs":
        if self.min_score is not None and self.min_score > self.max_score:
            raise ValueError(f"min_score {self.min_score:g} is above max_score {self.max_score:g}.")
        return self


class RewardArgs(ModelArgs):
    """A reward model: a sequence classifier in this process, or behind vLLM or SGLang.

    With one output the score is that output. With more, it is the probability of `label`.
    """

    tokenizer: PathText | None = Field(
        None, description="Its tokenizer, whose chat template is applied; default: `model`."
    )
    of: Literal["answer", "all"] = Field(
        "answer", description="What it reads: the answer alone, or the thinking too."
    )
    label: int | None = Field(None, ge=0, description="Which output, where there are several.")
    min_score: float | None = Field(None, description="Drop below it; default: only score.")
    max_tokens: int = Field(8192, ge=1, description="Longer rows are dropped, not cut.")
    batch_size: Annotated[int, ReadBy("server", None)] = Field(
        8, ge=1, description="Rows in one forward pass."
    )
    trust_remote_code: bool = Field(
        False, description="Run code that the checkpoint or its tokenizer brings."
    )

    @field_validator("server")
    @classmethod
    def _scores(cls, value: ServerArgs | None) -> ServerArgs | None:
        if value is not None and value.engine == "openai":
            raise ValueError(
                "the OpenAI API has no endpoint for reward models: set `engine: vllm` or "
                "`engine: sglang`, or use `judge`."
            )
        return value


class BestOfNArgs(Block):
    """The best rows of every prompt."""

    by: str = Field(description="Name of an earlier step that scores.")
    keep: int = Field(1, ge=1, description="Rows a prompt.")


class TopArgs(Block):
    """The best rows of all."""

    by: str = Field(description="Name of an earlier step that scores.")
    share: float = Field(0.5, gt=0.0, le=1.0)


class StepArgs(Block):
    """One step: a mapping of its kind to its settings, or the bare kind."""

    verify: VerifyArgs | None = None
    format: FormatArgs | None = None
    thinking: ThinkingArgs | None = None
    length: LengthArgs | None = None
    language: LanguageArgs | None = None
    deduplicate: DeduplicateArgs | None = None
    judge: JudgeArgs | None = None
    reward: RewardArgs | None = None
    best_of_n: BestOfNArgs | None = None
    top: TopArgs | None = None
    name: str | None = Field(None, description="Written among the settings.")

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, values: Any) -> Any:
        step = {values: None} if isinstance(values, str) else values
        if not isinstance(step, dict) or len(step) != 1:
            raise ValueError("a step is one mapping, such as `length: {max_chars: 8000}`")
        ((kind, settings),) = step.items()
        kinds = [name for name in cls.model_fields if name != "name"]
        if kind not in kinds:
            near = get_close_matches(str(kind), kinds, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"unknown step `{kind}`; {hint}Steps: {', '.join(kinds)}")
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            return {kind: settings}
        rest = {key: value for key, value in settings.items() if key != "name"}
        return {kind: rest, "name": settings.get("name")}

    @field_validator("name")
    @classmethod
    def _can_name_a_file(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w[\w.-]{0,63}", value):
            raise ValueError("must be at most 64 letters, digits, `_`, `-` and `.`, a letter first")
        return value

    @model_serializer
    def _as_written(self, info: SerializationInfo) -> dict[str, Any]:
        settings = self.args.model_dump(mode=info.mode, exclude_unset=info.exclude_unset)
        return {self.kind: {**({"name": self.name} if self.name else {}), **settings}}

    @property
    def kind(self) -> str:
        return next(key for key in self.model_fields_set if key != "name")

    @property
    def args(self) -> Block:
        return getattr(self, self.kind)

    @property
    def label(self) -> str:
        """Its name in reports and scores."""
        return self.name or self.kind

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(key, column) for every column of the prompts that it names itself."""
        found = []
        for key in COLUMN_KEYS.get(self.kind, ()):
            named = getattr(self.args, key) or []
            columns = [named] if isinstance(named, str) else named
            found += [(f"{self.kind}.{key}", column) for column in columns]
        return found

    @property
    def needs_tokenizer(self) -> bool:
        return self.kind in ("thinking", "length") and any(
            getattr(self.args, key, None) is not None for key in ("min_tokens", "max_tokens")
        )
