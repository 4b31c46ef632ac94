"""Counting tokens with a Hugging Face tokenizer."""

from functools import cache
from typing import Any

from axolotl_distill.errors import ConfigError, FilterError
from axolotl_distill.trajectories.messages import for_template
from axolotl_distill.trajectories.row import Trajectory


@cache
def load_tokenizer(
    name: str, key: str = "filter.tokenizer", trust_remote_code: bool | None = None
) -> Any:
    """Raises ConfigError, naming the recipe's `key`, where there is none.

    trust_remote_code  None leaves it to transformers, which asks on a terminal
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"`{key}: {name}` cannot be loaded: {error}") from error


def count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Tokens of every text, without special tokens."""
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def render(tokenizer: Any, messages: list[dict[str, Any]], row: Trajectory, **options: Any) -> Any:
    """`apply_chat_template`, with the row's tools; raises FilterError, naming the row, where the
    template refuses the messages."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            for_template(messages), tools=row.get("tools"), **options
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        name = tokenizer.name_or_path
        raise FilterError(
            f"The chat template of {name} refuses row {row['id']} ({roles}): {error}. "
            "If it knows no system messages, set `filter.system: drop`; or name another tokenizer."
        ) from None
