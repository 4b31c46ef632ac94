"""Thinking is split off once, at the start of the text, in every spelling; literal tags stay."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axolotl_distill.trajectories.thinking import (
    KNOWN,
    Tags,
    join_thinking,
    parts_of,
    split,
    split_thinking,
)

SPELLINGS = {
    "deepseek": "<think>\nI add.\n</think>\n\nIt is 12.",
    "one line": "<think>I add.</think>It is 12.",
    "indented": "\n\n  <think>\nI add.\n</think>\nIt is 12.",
    "case": "<Think>\nI add.\n</THINK>\nIt is 12.",
    "claude": "<thinking>I add.</thinking>\n\nIt is 12.",
    "exaone": "<thought>\nI add.\n</thought>\n\nIt is 12.",
    "magistral": "[THINK]I add.[/THINK]It is 12.",
    "seed": "<seed:think>I add.</seed:think>It is 12.",
    "kimi": "◁think▷I add.◁/think▷It is 12.",
    "skyt1": "<|begin_of_thought|>\n\nI add.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"
    "It is 12.\n\n<|end_of_solution|>",
    "cohere": "<|START_THINKING|>I add.<|END_THINKING|><|START_RESPONSE|>It is 12.<|END_RESPONSE|>",
    "harmony": "<|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>final"
    "<|message|>It is 12.<|return|>",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(text):
    assert split(text) == ("I add.", "It is 12.", "tags")
    assert split(text + "\n").answer.startswith("It is 12.")


A, C, F = (f"<|channel|>{name}<|message|>" for name in ("analysis", "commentary", "final"))
NEXT = "<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (f"{A}One.{NEXT}{A}Two.{NEXT}{F}12.<|return|>", ("One.\n\nTwo.", "12.", "tags")),
        (
            f"{A}One.{NEXT}{C}I look.{NEXT}{A}Two.{NEXT}{F}12.",
            ("One.\n\nTwo.", "I look.\n\n12.", "tags"),
        ),
        (f"{C}I look.{NEXT}{F}12.<|return|>", (None, "I look.\n\n12.", "none")),
        (f"{A}One.{NEXT}{CALL}", ("One.", f"<|start|>assistant{CALL}", "tags")),
        (
            f"{A}One.{NEXT} to=functions.add{C}{{}}<|call|>",
            ("One.", f"<|start|>assistant to=functions.add{C}{{}}<|call|>", "tags"),
        ),
        (
            f"{A}A message ends with <|end|>, I know.{NEXT}{F}12.",
            ("A message ends with <|end|>, I know.", "12.", "tags"),
        ),
        (f" to=functions.add{C}{{}}<|call|>", (None, f"to=functions.add{C}{{}}<|call|>", "none")),
        (f"{A}One.{NEXT}{A}Tw", ("One.\n\nTw", "", "unclosed")),
        (f"{A}One.{NEXT}", ("One.", "", "tags")),
        (f"{A}One.{NEXT}{F}1", ("One.", "1", "tags")),
        (f"{A}One.<|start|>assistant{F}12.", ("One.", "12.", "tags")),
        (f"{A}One.{NEXT}{F}", ("One.", "", "tags")),
        (f"Say `{A}` first.", (None, f"Say `{A}` first.", "none")),
    ],
)  # fmt: skip
def test_channels_of_harmony(text, parts):
    """All that is in `analysis` is thinking; what users are shown, and calls, are the answer."""
    assert split(text) == parts


def test_channels_whose_first_the_prompt_opened():
    assert split(f"One.{NEXT}{A}Two.{NEXT}{F}12.<|return|>", opened=True) == (
        "One.\n\nTwo.", "12.", "tags"
    )  # fmt: skip
    assert split(f"{A}One.{NEXT}{F}12.", tags=[Tags("<a>", "</a>")]).form == "none"


CLOSED_ONLY = [
    "I add.\n</think>\n\nIt is 12.",
    "I add.</think>It is 12.",
    "I add. </think>\nIt is 12.",
    "I add.\n[/THINK]It is 12.",
]


@pytest.mark.parametrize("text", CLOSED_ONLY)
def test_a_template_that_opens_the_thinking(text):
    for opened in (None, True):
        assert split(text, opened=opened) == ("I add.", "It is 12.", "closing tag")
    assert split(text, opened=False) == (None, text, "none")


LITERAL = [
    "Put `</think>` where the reasoning ends, then the answer.",
    "Put </think> where the reasoning ends, then the answer.",
    'The tag is "</think>".\n\nClose with it.',
    "Use re.sub to strip <think>…</think>.",
    "Call re.sub(r'<think>.*?</think>', '', text).\n",
    "Code:\n\n```python\ntext = text.split('\n</think>\n')[-1]\n```\nThat is all.",
    "```\n<think>\nx\n</think>\n```\n",
    " Four.\n",
    "",
    "Models write <thinking> first (</thinking> ends it).",
    "`<think>` opens, `</think>` closes.",
]


@pytest.mark.parametrize("text", LITERAL)
def test_tags_that_are_text(text):
    assert split(text) == (None, text, "none")
    thought = join_thinking("Hm.", f"X {text}")
    assert split_thinking(thought) == ("Hm.", f"X {text}".strip())


NESTED = [
    "The user asks how to strip tags. One writes <think>x</think> and cuts there. I say re.sub.",
    "I write `</think>` there.",
    "The closing tag is '</think>', the opening one \"<think>\".",
    "For example:\n```\n<think>\na\n</think>\n```\nSo be it.",
    "An opening <think> is all that I name.",
    "Open:\n```python\nprint(1)",
]


@pytest.mark.parametrize("thinking", NESTED)
@pytest.mark.parametrize("answer", ["Use re.sub.", "Use `<think>x</think>`.", "```x```"])
def test_tags_within_thinking(thinking, answer):
    assert split(join_thinking(thinking, answer)) == (thinking, answer, "tags")


def test_an_answer_in_tags_without_thinking():
    for text in (
        "<|channel|>final<|message|>It is 12.<|return|>",
        "<|begin_of_solution|>\nIt is 12.\n<|end_of_solution|>",
    ):
        assert split(text) == (None, "It is 12.", "none")


def test_the_end_of_an_answer_is_kept_to_the_letter():
    assert split("<think>\nI add.\n</think>\n\nFour. \n").answer == "Four. \n"


def test_cut_off():
    for text in ("<think>\nI look at", "[THINK]I look at", "<think>\nI look at `</think>` and"):
        thinking, answer, form = split(text)
        assert thinking.startswith("I look at") and (answer, form) == ("", "unclosed")
    assert split("I look at", opened=True) == ("I look at", "", "unclosed")
    assert split("I look at") == (None, "I look at", "none")
    assert split("<think>") == (None, "", "unclosed")
    assert split("<think>\n\n</think>\n\nFour.") == (None, "Four.", "tags")


def test_thinking_that_came_apart():
    """The content is the answer to the letter, unless it repeats the thinking."""
    literal = "<think> is a tag. </think> too.\n"
    assert split(literal, "I add.") == ("I add.", literal, "apart")
    assert split(SPELLINGS["deepseek"], " I add.\n") == ("I add.", "It is 12.", "apart")
    assert split("Four.", "  \n") == (None, "Four.", "none")


def test_tags_of_ones_own():
    own = [Tags("Here is my thought process:", "Here is my response:")]
    text = "Here is my thought process: I add. Here is my response: It is 12."
    assert split(text, tags=own) == ("I add.", "It is 12.", "tags")
    assert split(SPELLINGS["deepseek"], tags=own)[0] is None
    assert split(SPELLINGS["deepseek"], tags=[]).form == "none"


def test_a_row_is_split_once():
    """An answer that begins with a tag stays an answer."""
    row = {"content": "<think> opens it.", "reasoning_content": None, "thinking_form": "none"}
    assert parts_of(row) == (None, "<think> opens it.", "none")
    assert parts_of({**row, "thinking_form": None}) == ("opens it.", "", "unclosed")


PIECES = st.sampled_from(["I ", "add.\n", "`</think>`", "<think>x</think>", "12 ", "```a```", "\n"])


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, min_size=1), st.lists(PIECES), st.sampled_from(KNOWN[:9]))
def test_what_is_joined_comes_apart_again(thinking, answer, pair):
    thinking, answer = "".join(["T", *thinking]).strip(), "".join(["A", *answer]).strip()
    text = f"{pair.open}\n{thinking}\n{pair.close}\n\n{answer}"
    assert json.dumps(split(text)) == json.dumps([thinking, answer, "tags"])
