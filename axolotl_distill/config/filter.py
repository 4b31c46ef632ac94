"""`filter:` of a recipe: which steps, in which order, and the form of what is left."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from axolotl_distill.config.block import Block, PathText
from axolotl_distill.config.steps import StepArgs

SCORED = ("verify", "judge", "reward")
CHOOSING = ("best_of_n", "top")


class SplitArgs(Block):
    """Training and evaluation rows, divided by prompt."""

    eval: float = Field(0.05, ge=0.0, lt=1.0, description="Share of the prompts, not of the rows.")
    seed: int = Field(0, description="Another seed, another division.")


class FilterArgs(Block):
    """What is kept of the trajectories, and in which form."""

    input: PathText | None = Field(
        None,
        description="Trajectories, or any rows of messages: a .jsonl (.gz, .zst) or .parquet file, "
        "or a folder of them. Default: `generate.output`.",
    )
    output: PathText = Field(description="Folder of the dataset; a rerun replaces it.")
    steps: list[StepArgs] = Field([], description="Run in this order; each sees what is left.")
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
        names: dict[str, str] = {}
        for index, step in enumerate(self.steps):
            at = f"steps.{index}.{step.kind}"
            if step.label in names:
                raise ValueError(
                    f"`{at}`: another step is called `{step.label}` already. Give this one a name "
                    f"of its own: `{step.kind}: {{name: …}}`."
                )
            if step.kind in CHOOSING and names.get(step.args.by) not in SCORED:
                given = [name for name, kind in names.items() if kind in SCORED]
                raise ValueError(
                    f"`{at}.by`: no earlier step gives a score called `{step.args.by}`. "
                    + (
                        f"Earlier steps give: {', '.join(given)}."
                        if given
                        else f"Put one of {', '.join(SCORED)} before it."
                    )
                )
            if step.needs_tokenizer and self.tokenizer is None:
                raise ValueError(
                    f"`{at}` counts tokens, and there is no `tokenizer`. Set `filter.tokenizer` "
                    "to the student's, or use min_chars and max_chars."
                )
            names[step.label] = step.kind
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
