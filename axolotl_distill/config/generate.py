"""`generate:` of a recipe."""

import json
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from axolotl_distill.config.block import Block, PathText, ReadBy

# What `extra` may not set: it has its own key, or would change what an answer is.
OWN_KEYS = {
    *("model", "messages", "n", "stream", "seed", "temperature"),
    *("top_p", "max_tokens", "logprobs", "top_logprobs"),
}
TURN = {"role", "content"}


class PromptsArgs(Block):
    """One source of prompts. Columns that are not the prompt go with it as `meta`."""

    path: PathText = Field(
        description="JSON lines (.jsonl, .jsonl.gz, .jsonl.zst), Parquet, or a Hugging Face "
        "dataset: a folder, or a hub name."
    )
    split: str = Field("train", description="Of a Hugging Face dataset that has splits.")
    prompt: str | None = Field(None, description="Column with the user's text.")
    messages: str | None = Field(None, description="Column with chat messages.")
    limit: int | None = Field(None, ge=1, description="Only the first so many rows.")

    @model_validator(mode="after")
    def _one_column(self) -> "PromptsArgs":
        if self.prompt and self.messages:
            raise ValueError(
                "`prompt` and `messages` both name the column that is asked; give one of them."
            )
        return self


class BudgetArgs(Block):
    """What may be spent on the folder over all runs; one limit or both."""

    tokens: int | None = Field(None, ge=1, description="Of prompts and completions together.")
    usd: float | None = Field(None, gt=0.0, description="Needs `price`.")

    @model_validator(mode="after")
    def _limits_something(self) -> "BudgetArgs":
        if self.tokens is None and self.usd is None:
            raise ValueError("a budget needs `tokens`, `usd`, or both.")
        return self


class PriceArgs(Block):
    """USD for a million tokens."""

    input: float = Field(ge=0.0)
    output: float = Field(ge=0.0)


class GenerateArgs(Block):
    """What is asked of the teacher, how often, and where its answers go."""

    prompts: list[PromptsArgs] = Field(min_length=1)
    output: PathText = Field(description="Folder of the trajectories.")
    n: int = Field(1, ge=1, description="Completions a prompt.")
    temperature: float | None = Field(0.6, ge=0.0, description="null: the teacher's own default.")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="null: as above.")
    max_tokens: int | None = Field(
        4096, ge=1, description="Of one completion, thinking included. null: the server's limit."
    )
    system: str | None = Field(None, description="System prompt for prompts that have none.")
    examples: list[dict[str, str]] = Field(
        [],
        description="Chat turns that the teacher sees before every prompt and the trajectory does "
        "not hold: how a base model is told what is wanted.",
    )
    seed: int | None = Field(
        0, description="Each request's seed follows from it. null: none is sent."
    )
    logprobs: int | None = Field(
        None, ge=1, description="Keep the k most probable tokens of every position."
    )
    thinking_tags: list[list[str]] | None = Field(
        None,
        description="Pairs [opening, closing] that stand around the thinking at the start of an "
        "answer. null: those of the models that are known; []: thinking is not looked for.",
    )
    thinking_opened: bool | None = Field(
        None,
        description="Whether the chat template opens the thinking in the prompt, so that answers "
        "begin within it. null: judged answer by answer (server), seen in the prompt (model).",
    )
    budget: BudgetArgs | None = None
    price: PriceArgs | None = None
    batch_size: Annotated[int, ReadBy("teacher.server", None)] = Field(
        16, ge=1, description="A model that is loaded here: completions at once."
    )
    extra: dict[str, Any] = Field(
        {},
        description="server: merged into every request, for example {top_k: 20, "
        "chat_template_kwargs: {enable_thinking: true}}. model: arguments of `generate`, and the "
        "same chat_template_kwargs.",
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_is_enough(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | dict) else value
        if not isinstance(values, list):
            return values
        return [{"path": entry} if isinstance(entry, str) else entry for entry in values]

    @field_validator("examples")
    @classmethod
    def _questions_with_answers(cls, value: list[dict[str, str]]) -> list[dict[str, str]]:
        roles = ["user", "assistant"] * (len(value) // 2)
        if [turn.get("role") for turn in value] != roles or any(set(t) != TURN for t in value):
            raise ValueError(
                "examples are turns of {role, content}: user and assistant by turns, a user's "
                "first, an assistant's last."
            )
        return value

    @field_validator("extra")
    @classmethod
    def _not_our_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(OWN_KEYS & value.keys())
        if taken:
            raise ValueError(
                f"{', '.join(f'`{key}`' for key in taken)} cannot be set here: use the key of the "
                "`generate` block where it has one. `n` there asks once for each completion."
            )
        return value

    @field_validator("thinking_tags")
    @classmethod
    def _two_tags(cls, value: list[list[str]] | None) -> list[list[str]] | None:
        for pair in value or ():
            if len(pair) != 2 or len(set(pair)) != 2 or not all(tag.strip() for tag in pair):
                raise ValueError(
                    f"a pair is [opening tag, closing tag], which differ, and one is {pair}."
                )
        return value

    @field_validator("system", "examples", "extra")
    @classmethod
    def _can_be_sent(cls, value: Any) -> Any:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(
                "it holds half of a surrogate pair, which no request can carry. Write the whole "
                "character."
            ) from None
        return value

    @property
    def most_tokens(self) -> int | None:
        """Tokens that one completion has at most, where a limit is set."""
        return self.max_tokens or self.extra.get("max_completion_tokens")

    @model_validator(mode="after")
    def _goes_together(self) -> "GenerateArgs":
        if self.max_tokens is not None and "max_completion_tokens" in self.extra:
            raise ValueError(
                f"`extra.max_completion_tokens` and `max_tokens: {self.max_tokens}` would both be "
                "sent, and servers differ in which one counts. Set `max_tokens: null`."
            )
        if self.budget is None:
            return self
        if self.budget.usd is not None and self.price is None:
            raise ValueError(
                "`budget.usd` needs `price: {input: …, output: …}`, in USD for a million tokens."
            )
        if self.most_tokens is None:
            raise ValueError(
                "`budget` needs `max_tokens`: without it one completion could exceed any budget."
            )
        return self
