"""Reads tests in the forms that data sets have."""

import ast
import contextlib
import json
from dataclasses import dataclass
from typing import Any, TypeGuard

DEFINITIONS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom),
    *(ast.Assign, ast.AnnAssign, ast.Pass),
)
# The names end in __ so as to meet none of the answer's, which may hide built-in ones too. Only
# JSON's own types are compared: an object of the answer's may say that it equals anything. Tuples
# are lists and keys are text there, and only numbers with decimals have neighbours that are right.
CALL = """
import builtins as b__, json as json__
def plain__(value):
    kind = b__.type(value)
    if b__.isinstance(value, (b__.list, b__.tuple)):
        return [plain__(one) for one in value]
    if kind in (b__.str, b__.int, b__.float, b__.bool, b__.type(None)):
        return value
    if b__.isinstance(value, b__.dict):
        pairs = b__.list(b__.dict.items(value))
        return {{k if b__.type(k) is b__.str else json__.dumps(k): plain__(v) for k, v in pairs}}
    raise b__.TypeError("the result is a " + kind.__name__)
def same__(one, right):
    if b__.type(right) is b__.list and b__.type(one) is b__.list:
        return b__.len(one) == b__.len(right) and b__.all(b__.map(same__, one, right))
    if b__.type(right) is b__.dict and b__.type(one) is b__.dict:
        return one.keys() == right.keys() and b__.all(same__(one[k], right[k]) for k in right)
    if b__.type(right) is b__.float and b__.type(one) in (b__.int, b__.float):
        return one == right or b__.abs(one - right) <= 1e-9 + 1e-6 * b__.abs(right)
    return one == right
arguments__, right__ = json__.loads({values!r})
function__ = {name} if "{name}" in b__.globals() else Solution().{name}
result__ = plain__(function__(*arguments__))
assert b__.any(same__(result__, one) for one in right__), (
    f"{{b__.repr(result__):.80}} is not {{b__.repr(right__[0]):.80}}"
)
"""
UNITTEST = """
import unittest as unittest__
result__ = unittest__.main("__main__", argv=["tests"], exit=False).result
assert result__.wasSuccessful() and result__.testsRun, "tests of unittest failed"
"""


@dataclass(frozen=True)
class Test:
    """Either `script`, which runs after the code (`calls`: calls a function of it by name), or
    `stdin`, for which it prints `stdout`.
    """

    script: str = ""
    stdin: str | None = None
    stdout: str = ""
    calls: bool = False


class UnreadableTests(ValueError):
    """The tests are in no form that is known here, or test nothing."""


def read_tests(tests: Any, function: str | None = None) -> list[Test]:
    """The forms that data sets have:

    * Python text: each `assert` at its top is a test, run after all that stands before it which is
      no assert; what stands after the last one is a test, too. Of text that defines
      `check(candidate)`, the call with `function`; of text that defines `test_…()` and calls
      nothing, each of these; classes of `unittest` are one test together.
    * a list of such texts, each one test;
    * [{"input": …, "output": …}, …] or {"inputs": […], "outputs": […]}: standard input and output.
      `code.same_output` says what is the same.
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
    if any(map(_is_test_case, statements)):
        defined = [source for s, source in statements if not _starts_unittest(s, source)]
        return [Test(script="\n".join([*defined, UNITTEST]))]
    if not any(isinstance(s, ast.Assert) or _acts(s) for s, _ in statements):
        calls = [f"{s.name}()" for s, _ in statements if _is_test_function(s)]
        return [Test(script=f"{text}\n{call}") for call in calls] or [
            Test(script=_one_script(text))
        ]
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


def _is_test_case(statement: tuple[ast.stmt, str]) -> bool:
    bases = getattr(statement[0], "bases", ())
    return any(ast.unparse(base).endswith("TestCase") for base in bases)


def _starts_unittest(statement: ast.stmt, source: str) -> bool:
    """`unittest.main()`, on its own or below `if __name__ == "__main__":`, ends the process."""
    return (
        isinstance(statement, ast.Expr | ast.If)
        and "main" in source
        and ("unittest" in source or "__name__" in source)
    )


def _is_test_function(statement: ast.stmt) -> TypeGuard[ast.FunctionDef]:
    return (
        isinstance(statement, ast.FunctionDef)
        and statement.name.startswith("test")
        and not statement.args.args
    )


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
    return Test(script=CALL.format(name=name, values=json.dumps([arguments, right])), calls=True)
