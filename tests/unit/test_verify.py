"""The step `verify`: each method's verdicts, on the real libraries, whatever the answers do."""

import sys
import time

import psutil
import pytest

from axolotl_distill.config.block import parse_block
from axolotl_distill.errors import ConfigError, FilterError
from axolotl_distill.filter.steps.verify import VerifyArgs, VerifyStep
from axolotl_distill.filter.verify.extract import boxed, candidates, parts
from axolotl_distill.filter.verify.text import readings


def row(content, thinking=None, **meta):
    return {"content": content, "reasoning_content": thinking, "meta": meta, "scores": {}}


@pytest.fixture
def judge():
    steps = []

    def run(rows, **args):
        steps.append(VerifyStep(VerifyArgs(**{"workers": 1, **args})))
        return list(steps[-1].judge(rows))

    yield run
    for step in steps:
        step.close()
    left = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [one for one in left if "axolotl_distill.filter" in one]


RIGHT = [
    ("72", r"\boxed{72}"),
    ("$72$", "The answer is 72."),
    (72, "So we get 72.0"),
    ("1,234", "That makes 1234 in all."),
    ("1234", r"\boxed{1,234}"),
    ("3/4", "0.75"),
    (r"\frac{3}{4}", r"$\frac{6}{8}$"),
    ("50%", r"\boxed{50\%}"),
    ("50%", r"\boxed{0.5}"),
    ("50", r"\boxed{50\%}"),
    ("5 km", r"\boxed{5\text{ km}}"),
    ("$18", r"**Answer:** $18 per day"),
    ("$1,234.50", r"\boxed{\$1234.5}"),
    ("x^2+1", r"\boxed{1+x^2}"),
    (r"\frac{\pi}{2}", "<answer>pi/2</answer>"),
    (r"\{1,2\}", r"\boxed{2,1}"),
    ("(1,2)", r"$\boxed{(1, 2)}$"),
    ("1e-3", r"\boxed{0.001}"),
    ("-5", "−5"),
    ("x=3", r"\boxed{3}"),
    ("Monday", r"\boxed{\text{Monday}}"),
    ("B", r"\boxed{\text{(B)}}"),
    ("7", r"First \boxed{6}, no: \boxed{7}"),
    ("12", "<answer>12.</answer>"),
    ("12", r"\boxed{12.}"),
    ("12.", r"\boxed{12}"),
    ("3/4", "<answer>3/4.</answer>"),
    ("-3", r"\boxed{-3.}"),
    ("x+1", r"\boxed{x+1.}"),
    ("1234", "<answer>1,234.</answer>"),
    ("(1,2)", r"\boxed{(1,2).}"),
    ("50%", "<answer>50%.</answer>"),
    ("12", "<answer>The answer is 12.</answer>"),
    ("12", "<answer>The answer is 12</answer>"),
    (["1", "2."], r"\boxed{1.} and \boxed{2}"),
]
WRONG = [
    (r"12\pi", r"\boxed{12}"),
    ("x^2+1", "1"),
    ("72", r"\boxed{72.5}"),
    ("1/3", r"\boxed{0.33}"),
    ("2", "The answer is 3, not 2"),
    ("6", r"First \boxed{6}, no: \boxed{7}"),
    (r"\{1,2\}", r"\boxed{21}"),
    ("12", r"\boxed{12.5.}"),
    ("12", r"\boxed{.12}"),
]


def test_math_takes_equal_answers_and_no_others(judge):
    verdicts = judge((row(text, answer=gold) for gold, text in RIGHT + WRONG), method="math")
    right, wrong = verdicts[: len(RIGHT)], verdicts[len(RIGHT) :]
    assert [pair for pair, v in zip(RIGHT, right, strict=True) if not v.keep] == []
    assert [pair for pair, v in zip(WRONG, wrong, strict=True) if v.keep] == []
    assert {v.reason for v in wrong} == {"wrong answer"} and {v.score for v in wrong} == {0.0}
    assert "expected '72'" in wrong[2].detail and "72.5" in wrong[2].detail


def test_only_what_follows_the_thinking_counts(judge):
    rows = [
        row("<think>It is 72.</think>So 71.", answer="72"),
        row("<think>It is 71.</think>So 72.", answer="72"),
        row("<think>It must be 72", answer="72"),
        row("", thinking="It is 72.", answer="72"),
        row("72", thinking="It is 71.", answer="72"),
    ]
    verdicts = judge(rows, method="numeric")
    assert [v.keep for v in verdicts] == [False, True, False, False, True]
    assert [v.reason for v in verdicts] == ["wrong answer", "", "no answer", "no answer", ""]


def test_a_full_stop_after_the_answer(judge):
    (verdict,) = judge([row("Answer: 12.", answer="12")], method="math", extract="after:Answer:")
    assert verdict.keep, verdict


def test_fifty_answers_some_of_which_hang_or_eat_memory(judge):
    """The other rows get the verdicts they get alone, in order, and nothing stalls."""
    hostile = {
        4: r"\boxed{9^{9^{9^{9}}}}",
        17: r"\boxed{" + "(" * 3000 + "}",
        18: r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n!}^{n!}}",
        33: r"\boxed{(10^{10^{8}})! + 1}",
    }
    rows = [
        row(hostile.get(i, rf"\boxed{{{i if i % 3 else i + 1}}}"), answer=str(i)) for i in range(50)
    ]
    started = time.monotonic()
    verdicts = judge(rows, method="math", timeout=1.5, memory_mb=512, workers=2)
    assert time.monotonic() - started < 60
    for i, verdict in enumerate(verdicts):
        if i in hostile:
            assert not verdict.keep, i
        else:
            assert verdict.keep == bool(i % 3), (i, verdict)
    assert verdicts[4].reason == verdicts[17].reason == "verifier timed out"


def test_a_pattern_that_backtracks_for_ever_ends(judge):
    texts = ["a" * 50 + "!", "aaa", "b"]
    verdicts = judge((row(t) for t in texts), method="regex", pattern="^(a+)+$", timeout=1.0)
    assert [v.reason for v in verdicts] == ["verifier timed out", "", "wrong answer"]


def test_regex_with_the_reference_in_it(judge):
    rows = [row(text, answer="3.5") for text in ("x\nAnswer: 3.5", "Answer: 345", "3.5")]
    verdicts = judge(rows, method="regex", pattern=r"(?m)^Answer: {answer}$")
    assert [v.keep for v in verdicts] == [True, False, False]


@pytest.mark.parametrize(
    ("gold", "text", "ignore", "keep"),
    [
        ("Paris", "Well.\n\n**Answer:** paris.", None, True),
        ("Paris", "Answer: paris", ["space"], False),
        ("New York", "<answer> New \n York</answer>", None, True),
        ("New York", "<answer>New  York</answer>", ["case"], False),
        ("-5", "-5.", None, True),
        ("5", "-5", None, False),
        ("caf\u00e9", "cafe\u0301", [], True),
        (True, "true", None, True),
    ],
)
def test_exact(judge, gold, text, ignore, keep):
    args = {} if ignore is None else {"ignore": ignore}
    (verdict,) = judge([row(text, answer=gold)], method="exact", **args)
    assert verdict.keep is keep, verdict


@pytest.mark.parametrize(
    ("gold", "text", "args", "keep"),
    [
        ("18", "It costs $18 per day", {}, True),
        ("1,234", "1234.0", {}, True),
        (0.5, "50%", {}, True),
        (50, "50 %", {}, True),
        ("3/4", "0.75", {}, True),
        ("1e3", "1000", {}, True),
        ("100", "101", {"tolerance": 0.01}, True),
        ("100", "101.1", {"tolerance": 0.01}, False),
        ("0", "0.05", {"absolute_tolerance": 0.1}, True),
        ("5", "many", {}, False),
        ("5", "1/0", {}, False),
        ("She sold 48 clips, 72 in all.\n#### 72", "72", {"answer_extract": "after:####"}, True),
        ("7", "7 of the 12 m2", {"extract": "last_number"}, False),
        ("12", "7 of the 12 m2", {"extract": "last_number"}, True),
    ],
)
def test_numeric(judge, gold, text, args, keep):
    (verdict,) = judge([row(text, answer=gold)], method="numeric", **args)
    assert verdict.keep is keep, verdict


@pytest.mark.parametrize("method", ["math", "numeric", "exact"])
def test_partial_credit(judge, method):
    texts = [r"\boxed{3} and \boxed{5}", r"\boxed{3, 6}", r"\boxed{5}", "Answer: 3, 5"]
    rows = [row(text, answer=["3", "5"]) for text in texts]
    verdicts = judge(rows, method=method, min_score=0.5)
    assert [v.score for v in verdicts] == [1.0, 0.5, 0.0, 1.0]
    assert [v.keep for v in verdicts] == [True, True, False, True]
    (verdict,) = judge([row(texts[1], x="3", y="5")], method=method, answer=["x", "y"])
    assert (verdict.keep, verdict.reason, verdict.score) == (False, "below min_score", 0.5)


def test_a_missing_column_is_an_error_and_a_null_one_a_reason(judge):
    with pytest.raises(FilterError, match=r"'solution'.*has answer, source.*verify\.answer"):
        judge([row("1", answer="1", source="x")], method="numeric", answer="solution")
    (verdict,) = judge([row("1", answer=None)], method="numeric")
    assert verdict.reason == "no reference"


def test_an_answer_that_is_not_found_is_not_a_wrong_one(judge):
    (verdict,) = judge([row("It is 5.", answer="5")], method="math", extract="boxed")
    assert (verdict.reason, verdict.score) == ("final answer not found", None)
    assert "It is 5." in verdict.detail


def test_it_streams(judge):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield row(rf"\boxed{{{read}}}", answer=str(read))

    step = VerifyStep(VerifyArgs(method="math", workers=1))
    verdicts = step.judge(endless())
    for count in range(1, 101):
        assert next(verdicts).keep
        assert read - count <= 16
    step.close()


@pytest.mark.parametrize(
    ("text", "how", "found"),
    [
        (r"\boxed{a} \boxed{\frac{1}{2}} \boxed{never", "boxed", ["a", r"\frac{1}{2}"]),
        (r"\fbox{x} \boxed{\{1\}} \boxed{\boxed{y}}", "boxed", ["x", r"\{1\}", r"\boxed{y}"]),
        ("a 1,234.5 b -2 c 12-5 x2 3/4", "last_number", ["1,234.5", "-2", "12", "5", "3/4"]),
        ("1,2,3", "last_number", ["1", "2", "3"]),
        ("one\n**two**\n\n", "last_line", ["two"]),
        ("ANSWER: **7**\nbye", 'after:"Answer:"', ["7"]),
        ("Answer:\n\n7\nbye", "after:Answer:", ["7"]),
        ("<r>1</r> <r>2</r> <r>3", "tag:r", ["1", "2"]),
        (r"\boxed{1} <answer>2</answer>", "auto", ["2"]),
        ("The answer is 4.\nBye", "auto", ["4."]),
        ("so\nfour", "auto", ["four"]),
        ("  all\n of it ", "whole", ["all\n of it"]),
    ],
)
def test_where_the_final_answer_is(text, how, found):
    assert candidates(text, how) == found


def test_parts_and_readings():
    assert parts(["1", "2", "3"], 2) == ["2", "3"]
    assert parts(["(1, 2), [3; 4]"], 2) == ["(1, 2)", "[3; 4]"]
    assert parts(["1, 2, 3"], 2) == ["1, 2, 3"]
    assert readings(r"about \$1{,}234.50") == [1234.5]
    assert readings("-$3") == [-3.0] and readings("none") == []


def test_long_hostile_texts_take_no_time_to_search():
    texts = [r"\boxed{" * 30_000, r"\boxed{}" * 30_000, "1," * 100_000, "<answer>" * 30_000]
    started = time.monotonic()
    for text in [*texts, "answer:" * 5_000, "*" * 300_000, "-" * 300_000]:
        for how in ("auto", "last_number", "last_line"):
            candidates(text, how)
        boxed(text)
        readings(text)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "maths"}, "math"),
        (
            {"method": "math", "tolerance": 0.1},
            "`tolerance: 0.1` is read by `method: numeric` only, and `method` is math",
        ),
        ({"method": "math", "extract": "bxed"}, "verify.extract.*auto, boxed"),
        ({"method": "math", "extract": "after:"}, "verify.extract"),
        ({"method": "regex"}, "needs `pattern`"),
        ({"method": "regex", "pattern": "("}, "no Python regular expression"),
        ({"method": "code"}, "no security boundary.*allow: true"),
        ({"method": "code", "allow": True, "answer": ["a", "b"]}, "from one column"),
        ({"method": "math", "min_scor": 0.5}, "did you mean `min_score`"),
    ],
)
def test_wrong_configuration_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_block(VerifyArgs, values, "verify")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install .*'math-verify"):
        VerifyStep(VerifyArgs(method="math"))
