"""Answers that are equal to a reference as mathematics, kind by kind, and those that are not.

`math_answers.jsonl` has one reference a line. Its wrong answers are those that careless comparing
keeps: a right row that is dropped costs a row, a wrong one that is kept is learnt.
"""

import json
from pathlib import Path

import pytest

from axolotl_distill.filter.steps.verify import VerifyArgs, VerifyStep
from axolotl_distill.filter.verify.math import score
from axolotl_distill.filter.verify.text import readings

LINES = Path(__file__).with_name("math_answers.jsonl").read_text(encoding="utf-8").splitlines()
TABLE = [json.loads(line) for line in LINES]
BOXED = [line for line in TABLE if line["where"] == "box"]


def answers(lines):
    """(reference, answer, whether it is right)"""
    return [
        (line["reference"], answer, right == "right")
        for line in lines
        for right in ("right", "wrong")
        for answer in line[right]
    ]


@pytest.mark.parametrize("kind", sorted({line["kind"] for line in BOXED}))
def test_marked_answers(kind):
    wrong = [
        (reference, answer)
        for reference, answer, right in answers(one for one in BOXED if one["kind"] == kind)
        if (score([answer], [reference], {"in_prose": False})[0] == 1.0) != right
    ]
    assert wrong == []


def test_answers_in_prose():
    rows = answers(line for line in TABLE if line["where"] == "prose")
    step = VerifyStep(VerifyArgs(method="math", workers=1))
    verdicts = list(step.judge({"content": t, "meta": {"answer": gold}} for gold, t, _ in rows))
    step.close()
    assert [row for row, v in zip(rows, verdicts, strict=True) if v.keep != row[2]] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("３．５", 3.5), ("1\u2009234\u202f567", 1234567.0), ("答案是72。", 72.0), ("½", 0.5)),
        *((r"3 \times 10^{-5}", 3e-5), ("2.5·10³", 2500.0), (r"\frac{3}{4}", 0.75), ("5 m²", 5.0)),
        *(
            ("minus 5", -5.0),
            ("$ minus 5", -5.0),
            ("minus $5", -5.0),
            ("−$5", -5.0),
            ("-$ 5", -5.0),
        ),
        *(("Negative 5 dollars", -5.0), ("minus USD 1,000", -1000.0), ("10 minus 5", 5.0)),
        *(("minus 1/2", -0.5), ("x minus 5", 5.0), ("we lose negative .5", -0.5), ("5 - 3", 3.0)),
        *(("10％ off", 10.0), ("12 m^2", 12.0), ("in 2024 100 people", 100.0), ("1e-7", 1e-7)),
    ],
)
def test_numbers_as_they_are_written(text, value):
    assert readings(text)[0] == pytest.approx(value, rel=1e-12)
