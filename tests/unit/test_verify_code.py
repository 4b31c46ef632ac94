"""Code against tests: every form of tests, and answers that cheat, hang and break things."""

import logging

import pytest

from axolotl_distill.filter.verify import VerifyStep
from axolotl_distill.filter.verify.code import UnreadableTests, last_block, read_tests
from axolotl_distill.recipe.verify import VerifyArgs

ADD = "def add(a, b):\n    return a + b"
ASSERTS = (
    "assert add(1, 2) == 3\nassert add(-1, 1) == 0\nassert add(2, 2) == 4\nassert add(0, 0) == 0"
)
FORK = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"


def row(code, **meta):
    return {
        "content": f"Here:\n```python\n{code}\n```\nDone.",
        "reasoning_content": None,
        "meta": meta,
    }


@pytest.fixture
def judge():
    steps = []

    def run(rows, **args):
        values = {"method": "code", "allow": True, "workers": 2, "timeout": 5.0, **args}
        steps.append(VerifyStep(VerifyArgs(**values)))
        return list(steps[-1].judge(rows))

    yield run
    for step in steps:
        step.close()


def test_the_score_is_the_share_of_tests_passed(judge):
    codes = [ADD, "def add(a, b):\n    return abs(a) + abs(b)", "def add(a, b) return", "x = 1"]
    verdicts = judge((row(code, tests=ASSERTS) for code in codes), min_score=0.75)
    assert [v.score for v in verdicts] == [1.0, 0.75, 0.0, 0.0]
    assert [v.keep for v in verdicts] == [True, True, False, False]
    assert "SyntaxError" in verdicts[2].detail and "NameError" in verdicts[3].detail


def test_hostile_answers_are_wrong_ones_and_hold_up_nobody(judge):
    cheats = [
        "while True: pass",
        FORK,
        "x = bytearray(1 << 40)",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os; os.kill(os.getppid(), 9)\nos._exit(0)",
        "while True: print('x' * 100000)",
    ]
    rows = [row(code, tests=["assert add(1, 2) == 3"]) for cheat in cheats for code in (cheat, ADD)]
    verdicts = judge(rows, timeout=3.0)
    assert [v.keep for v in verdicts] == [False, True] * len(cheats)
    assert "timed out" in verdicts[0].detail and "timed out" in verdicts[2].detail
    assert "MemoryError" in verdicts[4].detail
    assert "ended before" in verdicts[6].detail and "ended before" in verdicts[8].detail


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "11"}],
        {"inputs": ["1 2\n", "5 5"], "outputs": ["3", "11\n\n"]},
        '{"inputs": ["1 2", "5 5"], "outputs": ["3  ", "11"]}',
    ],
)
def test_standard_input_and_output(judge, tests):
    code = "a, b = map(int, input().split())\nprint(a + b)"
    (verdict,) = judge([row(code, tests=tests)], min_score=0.5)
    assert verdict.keep and verdict.score == 0.5


def test_human_eval_s_check(judge):
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    rows = [row(code, tests=tests, name="add") for code in (ADD, "def add(a, b): return 0")]
    assert [v.keep for v in judge(rows, entry_point="name")] == [True, False]
    # Never called, they would pass whatever the code does.
    assert [v.reason for v in judge(rows)] == ["unreadable tests"] * 2


def test_what_stands_before_an_assert_is_run_before_it():
    first, second = read_tests("x = 1\nassert f(x)\nx = 2\nassert f(x)")
    assert first.script == "x = 1\nassert f(x)"
    assert second.script == "x = 1\nx = 2\nassert f(x)"


@pytest.mark.parametrize("tests", ["assert (", [1], {"fn_name": "f"}, "[]", "import os\nx = 1"])
def test_unreadable_tests(tests):
    with pytest.raises(UnreadableTests):
        read_tests(tests)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\n```py\nb\n```\n```\nout\n```", "b"),
        ("```\na\n```\n```bash\nls\n```", "a"),
        ("```python\nnever closed", None),
        ("no code", None),
    ],
)
def test_the_last_block_of_python(text, code):
    assert last_block(text) == code


def test_it_says_that_it_is_no_security_boundary(judge, caplog):
    with caplog.at_level(logging.WARNING):
        (verdict,) = judge([row(ADD, tests=[])])
    assert "NO security boundary" in caplog.text
    assert verdict.reason == "no reference"
