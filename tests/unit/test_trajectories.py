"""Rows that think: which tokens are labels and what they weigh, template by template.

Axolotl's own templates are rendered with SmolLM2's tokenizer; QWEN3 is how Qwen3's own differs from
the copy that Axolotl brings: its generation prompt does not open the thinking.
"""

import json
import re

import pytest
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from transformers import AutoTokenizer

from axolotl_distill.errors import ConfigError, TrajectoryError
from axolotl_distill.host.datasets.trajectories import load
from axolotl_distill.host.datasets.types import (
    resolve_types,
)

QUESTION = {"role": "user", "content": "3+4?"}
INLINE = {"role": "assistant", "content": "<think>\nLet us see.\n</think>\n\nSeven."}
APART = {"role": "assistant", "content": "Seven.", "reasoning_content": "Let us see."}

QWEN3 = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- set answer, thinking = m.content, m.reasoning_content or '' %}
{%- if '</think>' in answer %}
{%- set thinking = answer.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set answer = answer.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\\n' + thinking + '\\n</think>\\n\\n' }}
{%- endif %}
{{- answer + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TEMPLATES = {
    "chatml": {"chat_template": "chatml"},
    "axolotl qwen3": {"chat_template": "qwen3"},
    "qwen3": {"chat_template_jinja": QWEN3, "chat_template": "jinja"},
    "smollm2": {},
}


@pytest.fixture(scope="module")
def strategy(smollm2_dir):
    """Make the strategy of a dataset, as Axolotl would."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir, eos_token="<|im_end|>")

    def make(template="chatml", thinking="train", **options):
        entry = DictDefault({"path": "x.jsonl", "type": "axolotl_distill.trajectories", **options})
        entry["thinking"] = thinking
        resolve_types([entry])
        entry = DictDefault(SFTDataset(**entry).model_dump(exclude_none=True))
        cfg = DictDefault({"sequence_len": 512, **TEMPLATES.get(template, {})})
        cfg.chat_template = cfg.chat_template or (template if template not in TEMPLATES else None)
        strategy = load(tokenizer, cfg, ds_cfg=entry)
        strategy.read = lambda *turns: read(
            tokenizer, strategy.tokenize_prompt({"messages": list(turns)})
        )
        return strategy

    return make


def read(tokenizer, row):
    """The row's text, labels in brackets, their weight behind where it is not 1."""
    weights = row.get("loss_weight", [1.0] * len(row["labels"]))
    assert row["teacher_pos"] == [-1] * len(row["labels"]) and len(weights) == len(row["labels"])
    pieces = []
    for token, label, weight in zip(row["input_ids"], row["labels"], weights, strict=True):
        assert label in (-100, token)
        text = tokenizer.decode([token])
        pieces.append(
            text if label == -100 else f"[{text}:{weight:g}]" if weight != 1 else f"[{text}]"
        )
    return "".join(pieces).replace("][", "|").rpartition("<|im_start|>assistant\n")[2]


TAGS = "[<|think|>|\n"
END = "\n|</|think|>|\n|\n|Seven|.|<|im_end|>]\n"
EXPECTED = {
    "train": TAGS + "|Let| us| see|.|" + END,
    "mask": TAGS + "]Let us see.[" + END,
    0.25: TAGS + "|Let:0.25| us:0.25| see:0.25|.:0.25|" + END,
}


@pytest.mark.parametrize("turn", [INLINE, APART], ids=["inline", "apart"])
@pytest.mark.parametrize("template", ["chatml", "qwen3", "smollm2"])
def test_labels_and_weights(strategy, template, turn):
    for thinking, expected in EXPECTED.items():
        assert strategy(template, thinking).read(QUESTION, turn) == expected
    dropped = strategy(template, "drop").read(QUESTION, turn)
    assert dropped == ("<think>\n\n</think>\n\n" if template == "qwen3" else "") + (
        "[Seven|.|<|im_end|>]\n"
    )


@pytest.mark.parametrize("turn", [INLINE, APART], ids=["inline", "apart"])
def test_what_the_generation_prompt_opens_is_no_label(strategy, turn):
    seen = strategy("axolotl qwen3", 0.25).read(QUESTION, turn)
    assert seen == EXPECTED[0.25].replace(TAGS + "|", "<think>\n[")


def test_thinking_that_the_prompt_opened_is_opened(strategy):
    closed = {"role": "assistant", "content": "Let us see.\n</think>\n\nSeven."}
    for template in ("chatml", "qwen3"):
        assert strategy(template, 0.25).read(QUESTION, closed) == EXPECTED[0.25]


@pytest.mark.parametrize("template", ["deepseek_v3", "exaone4"])
def test_a_template_that_keeps_no_thinking_is_refused(strategy, template):
    for thinking in ("train", "mask", 0.5):
        with pytest.raises(ConfigError, match=rf"`{template}`.*chat_template: chatml.*drop"):
            strategy(template, thinking)
    strategy(template, "drop")


def test_earlier_turns_that_lose_their_thinking(strategy, caplog):
    """Kept in the context and not trained where the template drops it; said once."""
    turns = [QUESTION, INLINE, {"role": "user", "content": "5+6?"}, APART]
    qwen3, chatml = strategy("qwen3"), strategy("chatml")
    tokenizer = qwen3.tokenizer
    both = tokenizer.decode(_labels(chatml, turns))
    assert both.count("Let us see.") == 2 == both.count("Seven.<|im_end|>")
    only_last = tokenizer.decode(_labels(qwen3, turns) * 2)
    assert only_last == EXPECTED_TEXT * 2
    assert len(re.findall("drops the thinking of turns before", caplog.text)) == 1


def test_thinking_before_a_tool_call(strategy):
    """A turn without content, as agents write it, thinks like any other."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
    turn = {"role": "assistant", "reasoning_content": "Let us see.", "tool_calls": [call]}
    for content in ({"content": None}, {"content": ""}, {}):
        seen = strategy("axolotl qwen3", 0.25).read(QUESTION, {**turn, **content})
        assert "Let:0.25| us:0.25| see:0.25|.:0.25|" in seen and "add" in seen
        dropped = strategy("axolotl qwen3", "drop").read(QUESTION, {**turn, **content})
        assert "see" not in dropped and "add" in dropped


NESTED = "Write <think>x</think>, then cut at `</think>`."


@pytest.mark.parametrize("template", ["chatml", "qwen3", "axolotl qwen3", "smollm2"])
def test_tags_within_the_thinking(strategy, template):
    """The thinking ends where it ends, whichever form it came in."""
    inline = {"role": "assistant", "content": f"<think>\n{NESTED}\n</think>\n\nUse re.sub."}
    magistral = {"role": "assistant", "content": f"[THINK]{NESTED}[/THINK]Use re.sub."}
    apart = {"role": "assistant", "content": "Use re.sub.", "reasoning_content": NESTED}
    for turn in (inline, apart, magistral):
        masked = strategy(template, "mask")
        row = masked.tokenize_prompt({"messages": [QUESTION, turn]})
        labels = masked.tokenizer.decode([label for label in row["labels"] if label != -100])
        whole = masked.tokenizer.decode(row["input_ids"])
        assert NESTED in whole and "cut at" not in labels
        assert labels.endswith("</think>\n\nUse re.sub.<|im_end|>\n") or labels.endswith(
            "</think>\n\nUse re.sub.<|im_end|>"
        )


def test_an_answer_that_names_a_tag(strategy):
    """It is trained to the letter, or refused where the template cuts it."""
    turn = {"role": "assistant", "content": "Cut at `</think>` there."}
    assert "Cut at `</think>` there." in strategy("chatml").read(QUESTION, turn).replace("|", "")
    with pytest.raises(TrajectoryError, match="changes an answer"):
        strategy("qwen3").read(QUESTION, turn)


CALL = {"type": "function", "function": {"name": "find_train", "arguments": '{"to": "Ulm"}'}}
TOOL = {"type": "function", "function": {"name": "find_train", "parameters": {"type": "object"}}}


def test_tools_and_calls_are_rendered(strategy):
    """As text or typed, with the nulls that Arrow adds; a template that shows none is refused."""
    turn = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    typed = {"function": {"name": "find_train", "arguments": {"to": "Ulm", "day": None}}}
    qwen3 = strategy("axolotl qwen3")
    for calls, tools in (([CALL], json.dumps([TOOL])), ([typed], [TOOL])):
        messages = [QUESTION, {**turn, "tool_calls": calls}]
        row = qwen3.tokenize_prompt(
            json.loads(json.dumps({"messages": messages, "tools": tools, "id": "r1"}))
        )
        text = qwen3.tokenizer.decode(row["input_ids"])
        labels = qwen3.tokenizer.decode([label for label in row["labels"] if label != -100])
        assert '"arguments": {"to": "Ulm"}' in labels and "day" not in labels
        assert '"parameters": {"type": "object"}' in text
    for prompt in (
        {"messages": [QUESTION, turn]},
        {"messages": [QUESTION, APART], "tools": [TOOL]},
    ):
        for thinking in ("train", "drop"):
            with pytest.raises(TrajectoryError, match=r"row r1: .* does not show .*`find_train`"):
                copy = json.loads(json.dumps(prompt))
                strategy("chatml", thinking).tokenize_prompt({**copy, "id": "r1"})


@pytest.mark.parametrize("thinking", ["mask", 0.5, "drop"])
def test_no_thinking_to_weigh_is_said(strategy, thinking, caplog):
    plain = {"role": "assistant", "content": "Seven."}
    none = strategy("chatml", thinking)
    none.tokenize_prompt({"messages": [[QUESTION, plain]] * 3})
    said = rf"none of the first 3 rows has any thinking, and `thinking: {thinking}`"
    assert len(re.findall(said, caplog.text)) == 1
    caplog.clear()
    strategy("chatml", thinking).tokenize_prompt(
        {"messages": [[QUESTION, plain], [QUESTION, APART]]}
    )
    strategy("chatml", "train").tokenize_prompt({"messages": [[QUESTION, plain]]})
    assert "has any thinking" not in caplog.text


EXPECTED_TEXT = "<think>\nLet us see.\n</think>\n\nSeven.<|im_end|>"


def _labels(strategy, turns):
    row = strategy.tokenize_prompt({"messages": turns})
    return [label for label in row["labels"] if label != -100]


@pytest.mark.parametrize("thinking", ["train", "drop"])
def test_a_turn_without_its_answer_is_not_trained(strategy, thinking, caplog):
    cut = strategy("chatml", thinking)
    assert not _labels(cut, [QUESTION, {"role": "assistant", "content": "<think>\nLet us"}])
    assert not _labels(cut, [QUESTION, {**APART, "content": ""}])
    assert len(re.findall("cut off before its answer", caplog.text)) == 1


def test_rows_of_both_kinds_are_said_once(strategy, caplog):
    both = strategy("chatml")
    for turn in (INLINE, {"role": "assistant", "content": "Seven."}, APART):
        both.tokenize_prompt({"id": "r7", "messages": [QUESTION, turn]})
    assert len(re.findall("row r7, rows of the other kind", caplog.text)) == 1


def test_a_row_that_the_template_breaks(strategy):
    twice = "{% for m in messages %}{{ m.content }}{% if loop.last and '!' in m.content %}"
    twice += "{{ m.content }}{% endif %}{% endfor %}"
    broken = strategy("chatml")
    broken.prompter.chat_template = twice
    with pytest.raises(TrajectoryError, match=r"row r1: .* once and as it is"):
        turn = {"role": "assistant", "content": "<think>ho!</think>Seven."}
        broken.tokenize_prompt({"id": "r1", "messages": [QUESTION, turn]})


def test_user_names_of_fields_and_batches(strategy):
    """The options of chat_template hold, and rows come in batches."""
    named = strategy(
        "chatml",
        "mask",
        field_messages="talk",
        field_thinking="thoughts",
        message_property_mappings={"role": "from", "content": "value"},
    )
    talk = [
        {"from": "human", "value": "3+4?"},
        {"from": "gpt", "value": "Seven.", "thoughts": "Let us see."},
    ]
    batch = named.tokenize_prompt({"talk": [talk, talk]})
    assert len(batch["input_ids"]) == len(batch["teacher_pos"]) == 2
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    assert [read(named.tokenizer, row) for row in rows] == [EXPECTED["mask"]] * 2
