"""Running the code of an answer against tests, in the sandbox. The score is the share passed."""

import ast
import contextlib
import json
import secrets
from dataclasses import dataclass
from typing import Any

from axolotl_distill.filter.sandbox import Limits, Outcome, run_python
from axolotl_distill.filter.verify.text import Scored

LANGUAGES = {"python", "py", "python3"}


@dataclass(frozen=True)
class Test:
    """Either `script`, which runs after the code, or `stdin`, for which it prints `stdout`."""

    script: str = ""
    stdin: str | None = None
    stdout: str = ""


class UnreadableTests(ValueError):
    """The tests are in no form that is known here, or test nothing."""


def score(code: str, tests: list[dict[str, Any]], options: dict[str, Any]) -> Scored:
    """The share of `read_tests`' tests that the code passes."""
    limits = Limits(seconds=options["seconds"], memory_mb=options["memory_mb"])
    faults = [fault for test in tests if (fault := _fault(code, Test(**test), limits))]
    return 1.0 - len(faults) / len(tests), f"{len(faults)} of {len(tests)} tests failed" + (
        f"; the first: {faults[0]}" if faults else ""
    )


def last_block(answer: str) -> str | None:
    """The last fenced block marked as Python, else the last one without a mark."""
    blocks: dict[bool, str] = {}
    lines: list[str] | None = None
    language = ""
    for line in answer.splitlines():
        if not line.lstrip().startswith("```"):
            if lines is not None:
                lines.append(line)
        elif lines is None:
            lines, language = [], line.strip().strip("`").strip().lower()
        else:
            if language in LANGUAGES or not language:
                blocks[bool(language)] = "\n".join(lines)
            lines = None
    return blocks.get(True, blocks.get(False))


def read_tests(tests: Any, function: str | None = None) -> list[Test]:
    """The forms that data sets have:

    * Python text: each `assert` at its top is a test, run after all that stands before it which is
      no assert; text that defines `check(candidate)` is one test, of `function`; other text one.
    * a list of such texts, each one test;
    * [{"input": …, "output": …}, …] or {"inputs": […], "outputs": […]}: standard input and output.
      Lines are compared without the spaces at their ends.

    Lists and objects may be JSON text.
    """
    if isinstance(tests, str) and tests.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError):
            tests = json.loads(tests)
    match tests:
        case str():
            cases = _asserts(tests, function)
        case {"inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            cases = [_pair(*pair) for pair in zip(inputs, outputs, strict=True)]
        case [*items] if items:
            cases = [
                _pair(item["input"], item["output"])
                if isinstance(item, dict) and {"input", "output"} <= item.keys()
                else Test(script=_one_script(item))
                for item in items
            ]
        case _:
            cases = []
    if not cases:
        raise UnreadableTests(f"not tests: {str(tests)[:200]!r}")
    return cases


def _asserts(text: str, function: str | None) -> list[Test]:
    before: list[str] = []
    tests: list[Test] = []
    tree = _parsed(text)
    for statement in tree.body:
        source = ast.unparse(statement)
        if isinstance(statement, ast.Assert):
            tests.append(Test(script="\n".join([*before, source])))
        else:
            before.append(source)
    if tests:
        return tests
    defines_check = any(
        isinstance(statement, ast.FunctionDef) and statement.name == "check"
        for statement in tree.body
    )
    if defines_check and function:
        return [Test(script=f"{text}\ncheck({function})")]
    return [Test(script=_one_script(text))]


def _one_script(text: Any) -> str:
    """Refuses text that only defines something: it would always pass."""
    defines = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign
    if not isinstance(text, str) or all(isinstance(s, defines) for s in _parsed(text).body):
        raise UnreadableTests(
            f"tests nothing: {str(text)[:200]!r}. Tests that define `check(candidate)` need "
            "`entry_point: COLUMN`."
        )
    return text


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise UnreadableTests(f"not Python: {error} in {text[:200]!r}") from None


def _pair(stdin: Any, stdout: Any) -> Test:
    texts = ["\n".join(part) if isinstance(part, list) else str(part) for part in (stdin, stdout)]
    return Test(stdin=texts[0], stdout=texts[1])


def _fault(code: str, test: Test, limits: Limits) -> str:
    """What went wrong, in a few words; nothing when the test passed."""
    if test.stdin is not None:
        outcome = run_python(code, test.stdin, limits)
        if outcome.status == "ok" and _lines(outcome.stdout) != _lines(test.stdout):
            return f"printed {outcome.stdout[:100]!r}, expected {test.stdout[:100]!r}"
        return _trouble(outcome)
    # Code that ends the process itself, with exit code 0, has not passed.
    end = secrets.token_hex(16)
    outcome = run_python(f"{code}\n\n{test.script}\n\nprint('\\n{end}')\n", "", limits)
    if outcome.status == "ok" and not outcome.stdout.rstrip().endswith(end):
        return "ended before the test did"
    return _trouble(outcome)


def _trouble(outcome: Outcome) -> str:
    if outcome.status == "ok":
        return ""
    last = outcome.stderr.strip().rpartition("\n")[2][:200]
    return f"{outcome.status} ({last})" if last else outcome.status


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
