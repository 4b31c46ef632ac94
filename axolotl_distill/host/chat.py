"""How Axolotl writes a chat as token ids, for rows that somebody else's teacher answered."""

from typing import Any

from axolotl.loaders import load_tokenizer
from axolotl.prompt_strategies.chat_template import load as load_chat_template

from axolotl_distill.capture.layouts import Context
from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.config.capture import CaptureArgs

__all__ = ["chat_context", "load_tokenizer"]


def chat_context(cfg: Any, given: CaptureArgs | None, tokenizer: Any) -> Context:
    """What a layout needs: the config's tokenizer, chat template and label masks, with the options
    of the first entry of `distill.capture.datasets`."""
    entry = next(iter((given and given.datasets) or []), {})
    strategy = load_chat_template(tokenizer, cfg, ds_cfg=dict(entry))

    def chat(row: dict[str, Any]) -> tuple[list[int], list[int]]:
        read = strategy.tokenize_prompt(row)
        return list(read["input_ids"]), list(read["labels"])

    def prompt(messages: list[dict[str, Any]]) -> list[int]:
        # The strategy's, for the dataset's template and `chat_template_kwargs` are in it.
        return strategy.prompter.build_prompt(messages, add_generation_prompt=True)

    return Context(tokens=TokenIds(tokenizer), prompt=prompt, chat=chat)
