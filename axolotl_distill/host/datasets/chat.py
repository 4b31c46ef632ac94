"""`type: axolotl_distill.chat`: Axolotl's `chat_template`, for text with no stored logits.

It takes every option of `chat_template` and adds an empty pointer column, so that chats mix
with teacher stores in one run: their tokens are trained with plain cross-entropy.
"""

from typing import Any

from axolotl.prompt_strategies.chat_template import load as load_chat_template
from axolotl.prompt_tokenizers import PromptTokenizingStrategy

from axolotl_distill.signal.batch import POINTERS


class ChatStrategy(PromptTokenizingStrategy):
    """Delegates to a chat-template strategy and appends `teacher_pos = -1` for every token."""

    def __init__(self, inner: PromptTokenizingStrategy):
        super().__init__(prompter=inner.prompter, tokenizer=inner.tokenizer)
        self.inner = inner

    @property
    def supports_batched(self) -> bool:
        return self.inner.supports_batched

    def tokenize_prompt(self, prompt: dict[str, Any]) -> dict[str, Any]:
        row = dict(self.inner.tokenize_prompt(prompt))
        ids = row.get("input_ids", [])
        if ids and isinstance(ids[0], list):
            row[POINTERS.name] = [POINTERS.filled(len(row_ids)).tolist() for row_ids in ids]
        else:
            row[POINTERS.name] = POINTERS.filled(len(ids)).tolist()
        return row


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> ChatStrategy:
    """Axolotl's entry point for a dataset type."""
    return ChatStrategy(load_chat_template(tokenizer, cfg, ds_cfg=ds_cfg))
