"""Running the code of an answer against tests, in the sandbox. The score is the share passed."""

import ast
import contextlib
import json
import secrets
from dataclasses import dataclass, replace
from typing import Any

from axolotl_distill.filter.sandbox import Limits, Outcome, run_python
from axolotl_distill.filter.verify.text import Scored

LANGUAGES = {"python", "py", "python3"}
DEFINITIONS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom),
    *(ast.Assign, ast.AnnAssign, ast.Pass),
)
# The names end in __ so as to meet none of the answer's. Results of right answers may be tuples,
# which JSON does not have.
CALL = """
import json
def plain__(value):
    return [*map(plain__, value)] if isinstance(value, (list, tuple)) else value
arguments__, right__ = json.loads({values!r})
function__ = {name} if "{name}" in globals() else Solution().{name}
result__ = plain__(function__(*arguments__))
assert any(result__ == one for one in right__), f"{{result__!r:.80}} is not {{right__[0]!r:.80}}"
"""


@dataclass(frozen=True)
class Test:
    """Either `script`, which runs after the code, or `stdin`, for which it prints `stdout`."""

    script: str = ""
    stdin: str | None = None
    stdout: str = ""


class UnreadableTests(ValueError):
    """The tests are in no form that is known here, or test nothing."""


def score(code: str, tests: list[dict[str, Any]], options: dict[str, Any]) -> Scored:
    """The share of `read_tests`' tests that the code passes.

    Ends early, with the tests not run counted as failed, when `min_score` is out of reach, for then
    the row is dropped, and at the first time-out, for the next tests would take as long.
    """
    limits = Limits(seconds=options["seconds"], memory_mb=options["memory_mb"])
    total, run, why = len(tests), 0, ""
    faults: list[str] = []
    while run < total and not why:
        fault = _fault(code, Test(**tests[run]), limits)
        run += 1
        if fault:
            faults.append(fault)
            if fault.startswith("timed out"):
                why = "it timed out"
            elif (total - len(faults)) / total < options["min_score"] - 1e-9:
                why = "min_score is out of reach"
    detail = f"{len(faults)} of {total} tests failed"
    if faults:
        detail += f"; the first: {faults[0]}"
    if run < total:
        detail += f"; {total - run} not run: {why}"
    return (run - len(faults)) / total, detail


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
      no assert; what stands after the last one is a test, too. Of text that defines
      `check(candidate)`, the call with `function`.
    * a list of such texts, each one test;
    * [{"input": …, "output": …}, …] or {"inputs": […], "outputs": […]}: standard input and output.
      Lines are compared without the spaces at their ends.
    * the same with `fn_name` (APPS, TACO), or with `testtype: functional` (LiveCodeBench) and the
      name in `metadata.func_name` or `function`: arguments and result of a function, or of a method
      of `class Solution`. Arguments are a list, or a line of JSON each.

    Lists and objects may be JSON text. Raises UnreadableTests for everything else.
    """
    if isinstance(tests, str) and tests.lstrip().startswith(("[", "{")):
        with contextlib.suppress(ValueError, RecursionError):
            tests = json.loads(tests)
    match tests:
        case str():
            cases = _asserts(tests, function)
        case {"inputs": list(inputs), "outputs": list(outputs)} if len(inputs) == len(outputs):
            shared = {
                key: value for key, value in tests.items() if key not in ("inputs", "outputs")
            }
            cases = [
                _pair({**shared, "input": one, "output": other}, function)
                for one, other in zip(inputs, outputs, strict=True)
            ]
        case [*items] if items:
            cases = [
                _pair(item, function)
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
    statements = _statements(text)
    if function and any(
        isinstance(s, ast.FunctionDef) and s.name == "check" for s, _ in statements
    ):
        statements += _statements(f"check({function})")
    before: list[str] = []
    tests: list[Test] = []
    untested = False  # whether something was done since the last assert
    for statement, source in statements:
        if isinstance(statement, ast.Assert):
            tests.append(Test(script="\n".join([*before, source])))
            untested = False
        else:
            before.append(source)
            untested |= _acts(statement)
    if untested:
        tests.append(Test(script="\n".join(before)))
    return tests or [Test(script=_one_script(text))]


def _one_script(text: Any) -> str:
    """Refuses text that only defines something: it would always pass."""
    if not isinstance(text, str) or not any(_acts(s) for s, _ in _statements(text)):
        raise UnreadableTests(
            f"tests nothing: {str(text)[:200]!r}. Tests that define `check(candidate)` need "
            "`entry_point: COLUMN`."
        )
    return text


def _acts(statement: ast.stmt) -> bool:
    """Whether it does more than to define something, or to be a docstring."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return not isinstance(statement, DEFINITIONS)


def _statements(text: str) -> list[tuple[ast.stmt, str]]:
    """Those at the top, each with its source."""
    try:
        return [(statement, ast.unparse(statement)) for statement in ast.parse(text).body]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableTests(f"not Python: {error} in {text[:200]!r}") from None


def _pair(item: dict[str, Any], function: str | None) -> Test:
    name, metadata = item.get("fn_name"), item.get("metadata")
    if not name and isinstance(metadata, dict):
        name = metadata.get("func_name")
    kind = item.get("testtype") or ("functional" if name else "stdin")
    if kind == "functional":
        return _call(name or function, item["input"], item["output"])
    if kind != "stdin":
        raise UnreadableTests(f"`testtype` is {kind!r}, and neither stdin nor functional")
    return Test(stdin=_text(item["input"]), stdout=_text(item["output"]))


def _text(value: Any) -> str:
    """Of standard input or output: a text, or its lines."""
    lines = value if isinstance(value, list) else [value]
    if not all(isinstance(line, str) for line in lines):
        raise UnreadableTests(
            f"standard input and output are text, not {value!r:.200}; tests that call a "
            "function have its name in `fn_name`"
        )
    return "\n".join(lines)


def _call(name: Any, arguments: Any, result: Any) -> Test:
    if not isinstance(name, str) or not name.isidentifier():
        raise UnreadableTests(
            "tests that call a function need its name, in `fn_name` or by `entry_point: COLUMN`; "
            f"it is {name!r}"
        )
    if isinstance(arguments, str):
        try:
            arguments = [json.loads(line) for line in arguments.split("\n") if line.strip()]
            right = [json.loads(result) if isinstance(result, str) else result]
        except (ValueError, RecursionError) as error:
            raise UnreadableTests(f"not arguments and result in JSON: {error}") from None
    elif isinstance(arguments, list):
        # APPS wraps some results in a list of one.
        right = [result, *(result if isinstance(result, list) and len(result) == 1 else ())]
    else:
        raise UnreadableTests(f"the arguments are a list, not {arguments!r:.200}")
    return Test(script=CALL.format(name=name, values=json.dumps([arguments, right])))


def _fault(code: str, test: Test, limits: Limits) -> str:
    """What went wrong, in a few words; nothing when the test passed."""
    if test.stdin is not None:
        # A right answer must fit, with some space at the ends of its lines.
        size = limits.output + 2 * len(test.stdout.encode(errors="replace"))
        file_mb = limits.file_mb + (size >> 20)
        outcome = run_python(code, test.stdin, replace(limits, output=size, file_mb=file_mb))
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
