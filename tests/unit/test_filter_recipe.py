"""The `filter:` block: what is refused, in which words, before anything is loaded."""

import sys
from subprocess import run

import pytest
import yaml

from axolotl_distill.config.block import parse_block
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.args import FilterArgs


def parse(text: str) -> FilterArgs:
    return parse_block(FilterArgs, {"output": "o", **yaml.safe_load(text)}, "filter")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [{lenght: {max_chars: 9}}]", ["filter.steps.0", "did you mean `length`?"]),
        ("steps: [language, {length: {max_chrs: 9}}]", ["filter.steps.1.length", "`max_chars`?"]),
        ("steps: [{length: {max_chars: 9}, top: {}}]", ["filter.steps.0", "one mapping"]),
        ("steps: [{length: 9}]", ["filter.steps.0.length"]),
        ("steps: [{length: {}}]", ["filter.steps.0.length", "no limit"]),
        ("steps: [{length: {min_chars: 9, max_chars: 3}}]", ["min_chars 9 is above max_chars 3"]),
        ("steps: [language, language]", ["steps.1.language", "a name of its own"]),
        ("steps: [{top: {by: reward}}]", ["steps.0.top.by", "no earlier step", "`reward`"]),
        (
            "steps: [{verify: {method: math, name: strict}}, {best_of_n: {by: verify}}]",
            ["steps.1.best_of_n.by", "Earlier steps give: strict"],
        ),
        ("steps: [language, {best_of_n: {by: language}}]", ["no earlier step gives a score"]),
        ("steps: [{length: {max_tokens: 9}}]", ["steps.0.length", "tokenizer"]),
        ("steps: [{thinking: {min_tokens: 9}}]", ["steps.0.thinking", "tokenizer"]),
        ("steps: [{format: {match: '(('}}]", ["filter.steps.0.format.match", "regular expr"]),
        (
            "steps: [{reward: {model: r, server: {base_url: 'http://h/v1'}}}]",
            ["filter.steps.0.reward.server", "engine: vllm"],
        ),
        (
            "steps: [{judge: {model: m, server: {base_url: 'http://h/v1'}, min_score: 11}}]",
            ["filter.steps.0.judge", "above max_score"],
        ),
        ("sequence_len: 8", ["sequence_len", "tokenizer"]),
        ("{format: alpaca, reasoning: field}", ["reasoning: field", "messages"]),
        ("split: {evl: 0.1}", ["filter.split", "did you mean `eval`?"]),
        ("max_drop: 2", ["filter.max_drop"]),
    ],
)
def test_refused(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for words in said:
        assert words in str(caught.value)


def test_read():
    args = parse(
        "steps: [language, {format: null}, {verify: {method: math, name: strict}},"
        " {best_of_n: {by: strict}}, {deduplicate: {method: near}}]"
    )
    assert [step.label for step in args.steps] == [
        "language", "format", "strict", "best_of_n", "deduplicate"
    ]  # fmt: skip
    assert [step.kind for step in args.steps][2] == "verify"
    written = args.model_dump(mode="json", exclude_unset=True)
    assert written["steps"][2] == {"verify": {"name": "strict", "method": "math"}}
    assert parse_block(FilterArgs, written, "filter") == args


def test_light():
    """A wrong recipe is refused at once: reading one loads nothing heavy."""
    heavy = ("torch", "transformers", "openai", "matplotlib", "datasketch", "py3langid", "numpy")
    code = (
        "import sys, axolotl_distill.commands.recipe\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
