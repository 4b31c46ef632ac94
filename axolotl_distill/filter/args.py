"""`filter:` of a recipe: which steps, in which order, and the form of what is left."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    SerializationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

import axolotl_distill.filter.steps  # noqa: F401 (fills STEPS)
from axolotl_distill.config.block import Block, PathText
from axolotl_distill.filter.step import STEPS, Step


class StepArgs(Block):
    """One step: a mapping of its kind to its settings, or the bare kind."""

    name: str | None = Field(None, description="Written among the settings.")

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, values: Any) -> Any:
        step = {values: None} if isinstance(values, str) else values
        if not isinstance(step, dict) or len(step) != 1:
            raise ValueError("a step is one mapping, such as `length: {max_chars: 8000}`")
        ((kind, settings),) = step.items()
        if kind not in STEPS:
            near = get_close_matches(str(kind), STEPS, n=1)
            hint = f"did you mean `{near[0]}`? " if near else ""
            raise ValueError(f"unknown step `{kind}`; {hint}Steps: {', '.join(STEPS)}")
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
    def step(self) -> type[Step[Any]]:
        return STEPS[self.kind]

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
        return self.step.columns(self.args)


if TYPE_CHECKING:
    AnyStepArgs = StepArgs
else:
    # A field for every step, so that a fault is told under its key.
    AnyStepArgs = create_model(
        "AnyStepArgs",
        __base__=StepArgs,
        **{kind: (step.Args | None, None) for kind, step in STEPS.items()},
    )


class SplitArgs(Block):
    """Training and evaluation rows, divided by prompt."""

    eval: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="Share of the prompts, not of the rows."
    )
    seed: int = Field(default=0, description="Another seed, another division.")


class FilterArgs(Block):
    """What is kept of the trajectories, and in which form."""

    input: PathText | None = Field(
        None,
        description="Trajectories, or any rows of messages: a .jsonl (.gz, .zst) or .parquet file, "
        "or a folder of them. Default: `generate.output`.",
    )
    output: PathText = Field(description="Folder of the dataset; a rerun replaces it.")
    steps: list[AnyStepArgs] = Field([], description="Run in this order; each sees what is left.")
    max_drop: float = Field(
        0.5, ge=0.0, le=1.0, description="A step that drops a larger share says so loudly."
    )
    split: SplitArgs = SplitArgs()
    format: Literal["messages", "alpaca", "prompt_completion"] = "messages"
    reasoning: Literal["tags", "field", "drop"] = Field(
        "tags",
        description="Thinking inside the content as <think>…</think>, in the message's "
        "`reasoning_content`, or left out.",
    )
    system: Literal["keep", "drop"] = Field("keep", description="System messages of the prompts.")
    file: Literal["parquet", "jsonl"] = Field("parquet", description="zstd, or gzip.")
    shard_rows: int = Field(100_000, ge=1, description="Rows in one file.")
    tokenizer: PathText | None = Field(
        None, description="The student's: local folder or hub name. Needed to count tokens."
    )
    sequence_len: int | None = Field(
        None, ge=1, description="As in the training config; longer rows are reported."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "FilterArgs":
        names: set[str] = set()
        scored: list[str] = []
        for index, step in enumerate(self.steps):
            at = f"steps.{index}.{step.kind}"
            if step.label in names:
                raise ValueError(
                    f"`{at}`: another step is called `{step.label}` already. Give this one a name "
                    f"of its own: `{step.kind}: {{name: …}}`."
                )
            by = step.step.chooses_by(step.args)
            if by is not None and by not in scored:
                known = [kind for kind, one in STEPS.items() if one.scores]
                raise ValueError(
                    f"`{at}.by`: no earlier step gives a score called `{by}`. "
                    + (
                        f"Earlier steps give: {', '.join(scored)}."
                        if scored
                        else f"Put one of {', '.join(known)} before it."
                    )
                )
            if step.step.counts_tokens(step.args) and self.tokenizer is None:
                raise ValueError(
                    f"`{at}` counts tokens, and there is no `tokenizer`. Set `filter.tokenizer` "
                    "to the student's, or use min_chars and max_chars."
                )
            names.add(step.label)
            scored += [step.label] if step.step.scores else []
        if self.input is not None:
            read, written = Path(self.input).resolve(), Path(self.output).resolve()
            if read.is_relative_to(written) or written == read:
                raise ValueError(
                    f"`output: {self.output}` is what `input` reads, or a folder around it, and a "
                    "filter replaces its folder wholly. Name another folder."
                )
        if self.sequence_len is not None and self.tokenizer is None:
            raise ValueError("`sequence_len` is in tokens: set `tokenizer` to the student's.")
        if self.reasoning == "field" and self.format != "messages":
            raise ValueError(
                f"`reasoning: field` needs `format: messages`; {self.format} has no place for it. "
                "Use `tags` or `drop`."
            )
        return self
