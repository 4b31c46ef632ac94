"""Code against tests: every form of tests, and answers that cheat, hang and break things."""

import json
import logging
import time

import pytest

from axolotl_distill.filter.steps.verify import VerifyArgs, VerifyStep
from axolotl_distill.filter.verify.blocks import last_block
from axolotl_distill.filter.verify.tests import UnreadableTests, read_tests

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
    assert verdicts[3].detail.endswith("2 not run: min_score is out of reach")
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


def test_what_stands_after_the_last_assert_is_a_test(judge):
    tests = "assert add(1, 2) == 3\nfor a in range(9): assert add(a, a) == 2 * a"
    rows = [row(code, tests=tests) for code in (ADD, "def add(a, b): return 3")]
    assert [v.score for v in judge(rows)] == [1.0, 0.5]
    assert len(read_tests("assert f(1)\ndef g(): pass\n'the end'")) == 1
    assert len(read_tests("assert True\ndef check(f): assert f()", "f")) == 2


CALLS = [
    ({"fn_name": "add", "inputs": [[1, 2], [0, 0]], "outputs": [3, 0]}, ADD),
    ({"fn_name": "add", "inputs": [[1, 2], [0, 0]], "outputs": [[3], [0]]}, ADD),
    ({"fn_name": "rev", "inputs": [["abc"]], "outputs": ["cba"]}, "def rev(s): return s[::-1]"),
    ({"fn_name": "two", "inputs": [[1]], "outputs": [[[1], 2]]}, "def two(a): return ((a,), 2)"),
    (
        {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]},
        "class Solution:\n    def add(self, a, b): return a + b",
    ),
    (
        [
            {"input": '"ab"\n[1, null]', "output": '["ab", [1, null]]', "testtype": "functional"},
            {
                **{"input": "1\n2", "output": "[1, 2]", "testtype": "functional"},
                "metadata": {"func_name": "pair"},
            },
        ],
        "def pair(a, b): return [a, b]",
    ),
]


@pytest.mark.parametrize(("tests", "code"), CALLS)
def test_tests_that_call_a_function(judge, tests, code):
    wrong = code.replace("return ", "return 'x' and not ")
    rows = [row(c, tests=t, name="pair") for c in (code, wrong) for t in (tests, json.dumps(tests))]
    verdicts = judge(rows, entry_point="name")
    assert [v.score for v in verdicts] == [1.0, 1.0, 0.0, 0.0], verdicts
    assert "AssertionError" in verdicts[2].detail


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert (", "not Python"),
        ("(" * 100_000, "not Python"),
        ("assert 0" + "+1" * 100_000, "not Python"),
        ([1], "tests nothing"),
        ({"fn_name": "f"}, "not tests"),
        ("[]", "not tests"),
        ("import os\nx = 1", "tests nothing"),
        ("'Tests.'\nx: int\nasync def check(f): assert f()\npass", "tests nothing"),
        ({"inputs": [[1, 2]], "outputs": [3]}, r"text, not \[1, 2\].*fn_name"),
        ({"inputs": [5], "outputs": ["3"]}, "text, not 5"),
        ([{"input": {}, "output": "3"}], "text, not {}"),
        ({"fn_name": "f g", "inputs": [[1]], "outputs": [3]}, "'f g'"),
        ({"fn_name": "f", "inputs": [{"a": 1}], "outputs": [3]}, "are a list, not {'a': 1}"),
        ({"fn_name": "f", "inputs": ["1\nx"], "outputs": ["3"]}, "in JSON"),
        ([{"input": "1", "output": "3", "testtype": "functional"}], "entry_point.*None"),
        ([{"input": "1", "output": "3", "testtype": "image"}], "'image'"),
    ],
)
def test_unreadable_tests(judge, tests, message):
    with pytest.raises(UnreadableTests, match=message):
        read_tests(tests)
    assert judge([row(ADD, tests=tests)])[0].reason == "unreadable tests"


def test_long_output(judge):
    """Longer than what is kept of a stream, and than a file may be."""
    million = "x" * 1_000_000 + "\n"
    code = "for _ in range(int(input())): print('x' * 1_000_000, end=' \\n')"
    rows = [
        row(code, tests=[{"input": "2", "output": 2 * million}]),
        row(code, tests=[{"input": "17", "output": 17 * million}]),
        row(code, tests=[{"input": "3", "output": 2 * million}]),
        row("print('x' * 3_000_000)\n" + ADD, tests=ASSERTS),
    ]
    assert [v.keep for v in judge(rows)] == [True, True, False, True]


def test_an_answer_that_hangs_or_fails_costs_little(judge):
    tests = [f"assert add({i}, 0) == {i}" for i in range(200)]
    late = "def add(a, b):\n    while a == 2: pass\n    return a"
    rows = [
        row(code, tests=tests) for code in ("while True: pass", late, "def add(a, b): return 1")
    ]
    started = time.monotonic()
    verdicts = judge(rows, timeout=1.0)
    assert time.monotonic() - started < 20
    assert [v.score for v in verdicts] == [0.0, 0.01, 0.0]
    assert "1 of 200" in verdicts[0].detail and "199 not run: it timed out" in verdicts[0].detail
    assert "197 not run: it timed out" in verdicts[1].detail
    assert "199 not run: min_score is out of reach" in verdicts[2].detail


def test_a_row_that_may_still_be_kept_has_all_its_tests_run(judge):
    tests = ["assert add(1, 1) == 3", *["assert add(1, 2) == 3"] * 3]
    assert [v.score for v in judge([row(ADD, tests=tests)], min_score=0.5)] == [0.75]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\n```py\nb\n```\n```\nout\n```", "b"),
        ("```\na\n```\n```bash\nls\n```", "a"),
        ("```python\nnever = 'closed'", "never = 'closed'"),
        ("```python\na = 1\n```\nand so\n```python\nb = 2", "b = 2"),
        ("~~~py\na\n~~~", "a"),
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''"),
        ("```python\n'''\n```\nx\n```\n'''\na\n```\nEnd.", "'''\n```\nx\n```\n'''\na"),
        ('```Python title="a.py"\na\n```', "a"),
        ("```{.python .numberLines}\na\n```", "a"),
        ("```python=\na\n```", "a"),
        ("- So:\n\n  ```python\n  if a:\n      b\n\n  ```", "if a:\n    b\n"),
        ("> ```python\n> if a:\n>     b\n> ```", "if a:\n    b"),
        ("Code: ```python\na\n```", "a"),
        ("```python\r\na\r\nb\r\n```\r\n", "a\nb"),
        ("```python\na = '\f\u2028\x85'\n```", "a = '\f\u2028\x85'"),
        ("```cpp\nint a;\n```", None),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("no code", None),
        ("Done", None),
    ],
)
def test_the_last_block_of_python(text, code):
    assert last_block(text) == code


FINE = {
    "imports that LeetCode has": (
        "class Solution:\n    def top(self, a: List[int]) -> Optional[int]:\n"
        "        heapify(a)\n"
        "        return pow(heappop(a), 2, 7) + int(sqrt(0)) + bisect.bisect(a, 0)",
        {"fn_name": "top", "inputs": [[[3, 2]]], "outputs": [4]},
    ),
    "the same, told by asserts": (
        "class Solution:\n    def top(self, a: List[int]) -> int:\n        return Counter(a)[1]",
        "assert Solution().top([1, 1]) == 2",
    ),
    "an import from the future": (
        "from __future__ import annotations\nclass Solution:\n    def f(self, a: Foo): return a",
        {"fn_name": "f", "inputs": [[1]], "outputs": [1]},
    ),
    "a name of a built-in one": (
        "sum = map = any = list = json = 0\ndef f(a): return (a, a)",
        {"fn_name": "f", "inputs": [[1]], "outputs": [[1, 1]]},
    ),
    "a program that is imported": (
        ADD + "\nif __name__ == '__main__': print(add(*map(int, input().split())))",
        "assert add(1, 2) == 3",
    ),
    "a dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int\ndef add(a, b): return A(a).x + b",
        "assert add(1, 2) == 3",
    ),
    "a decimal": (
        "def f(a): return a + 0.2",
        {"fn_name": "f", "inputs": [[0.1]], "outputs": [0.3]},
    ),
    "keys": (
        "from collections import Counter\ndef f(a): return {1: Counter('a'), 2: (1,), None: a}",
        {"fn_name": "f", "inputs": [[5]], "outputs": [{"1": {"a": 1}, "2": [1], "null": 5}]},
    ),
    "unittest": (
        ADD,
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_a(self): self.assertEqual(add(1, 2), 3)\n"
        "if __name__ == '__main__':\n    unittest.main()",
    ),
    "pytest": (ADD, "def test_add():\n    assert add(1, 2) == 3\n"),
    "decimals printed": ("print(1 / 3, 5, 2)", [{"input": "", "output": "0.333333 5 2.0\n\n"}]),
    "a form feed": ("print(len('a\fb'))", [{"input": "", "output": "3"}]),
}
FAULTY = {
    "says it equals anything": (
        "class A:\n    def __eq__(self, other): return True\ndef f(a): return A()",
        {"fn_name": "f", "inputs": [[1]], "outputs": [2]},
    ),
    "only what the judge has": (
        "class Solution:\n    def other(self): pass",
        {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]},
    ),
    "a whole number off by little": (
        "def f(a): return 10**9 + 1",
        {"fn_name": "f", "inputs": [[1]], "outputs": [10**9]},
    ),
    "another decimal": (
        "def f(a): return 2e-7",
        {"fn_name": "f", "inputs": [[1]], "outputs": [1e-7]},
    ),
    "decimals for a whole number": ("print(3.0)", [{"input": "", "output": "3"}]),
    "a large whole number": ("print(1000000001)", [{"input": "", "output": "1000000000"}]),
    "other decimals": ("print(0.34)", [{"input": "", "output": "0.333"}]),
    "tiny": ("print(2e-7)", [{"input": "", "output": "0.0000001"}]),
    "another case": ("print('YES')", [{"input": "", "output": "Yes"}]),
    "spaces within": ("print('1  2')", [{"input": "", "output": "1 2"}]),
    "a line too many": ("print(1); print(2)", [{"input": "", "output": "1"}]),
    "not a number": ("print('nan')", [{"input": "", "output": "0.5"}]),
    "another key": (
        "def f(a): return {2: 1}",
        {"fn_name": "f", "inputs": [[1]], "outputs": [{"1": 1}]},
    ),
    "unittest that it leaves": (
        "def add(a, b): raise SystemExit(0)",
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_a(self): self.assertEqual(add(1, 2), 3)\nunittest.main()",
    ),
    "pytest failed": ("def add(a, b): return 0", "def test_add():\n    assert add(1, 2) == 3\n"),
}


def test_what_is_right_and_what_is_not(judge):
    cases = FINE | FAULTY
    verdicts = judge((row(code, tests=tests) for code, tests in cases.values()), timeout=20.0)
    judged = zip(cases, verdicts, strict=True)
    assert [(name, v.detail) for name, v in judged if v.keep != (name in FINE)] == []


def test_it_says_that_it_is_no_security_boundary(judge, caplog):
    with caplog.at_level(logging.WARNING):
        (verdict,) = judge([row(ADD, tests=[])])
    assert "NO security boundary" in caplog.text
    assert verdict.reason == "no reference"
