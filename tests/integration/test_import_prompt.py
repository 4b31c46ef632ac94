"""The prompt that `axolotl distill import` puts before an answer is the one of the config."""

import pytest
from axolotl.utils.dict import DictDefault
from jinja2 import TemplateError

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.host.chat import chat_context

QUESTION = [{"role": "user", "content": "Say hello."}]


def asked(tokenizer, messages=QUESTION, entry=None, **config):
    cfg = DictDefault({"sequence_len": 100, **config})
    given = CaptureArgs(teacher="-", output="-", datasets=[entry] if entry else None)
    return tokenizer.decode(chat_context(cfg, given, tokenizer).prompt(messages))


def test_chat_template_kwargs(tokenizer):
    """Qwen3 without thinking brings an empty one along in its generation prompt."""
    thinking = asked(tokenizer, chat_template="qwen3")
    without = asked(
        tokenizer, chat_template="qwen3", chat_template_kwargs={"enable_thinking": False}
    )
    assert without.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "</think>" not in thinking


def test_template_of_the_dataset(tokenizer):
    """It goes before the config's, as in training; without either it is the tokenizer's."""
    entry = {"path": "-", "type": "chat_template", "chat_template": "gemma"}
    assert "<start_of_turn>model" in asked(tokenizer, entry=entry, chat_template="qwen3")
    assert asked(tokenizer) == tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, tokenize=False
    )


def test_a_refusal_is_the_template_s(tokenizer):
    """What ImportedRows tells as a row that cannot be imported."""
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    with pytest.raises(TemplateError, match="System role not supported"):
        asked(tokenizer, system, chat_template="gemma")
