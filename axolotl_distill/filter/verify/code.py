"""Running the code of an answer against tests, in the sandbox. The score is the share passed."""

import math
import re
import secrets
from dataclasses import replace
from typing import Any

from axolotl_distill.filter.verify.tests import Test
from axolotl_distill.filter.verify.text import Scored
from axolotl_distill.sandbox import Limits, Outcome, best_here

# What the judges of LeetCode have imported before an answer runs. It goes where Python's own names
# are: what the answer defines hides it, and no test takes operator.add for the answer's `add`.
PRELUDE = """
def prelude__():
    import builtins, importlib
    for name in (
        "bisect collections copy datetime functools heapq itertools json math operator random re "
        "statistics string sys typing"
    ).split():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", [one for one in dir(module) if one[0] != "_"])
        for one in () if name in ("json", "random", "sys") else public:
            vars(builtins).setdefault(one, getattr(module, one))
        setattr(builtins, name, module)
prelude__()
"""
# An answer that is imported by its tests does not run its `if __name__ == "__main__":`, which may
# wait for input. Its module must be found by name all the same (dataclasses look).
AS_MODULE = "import sys; sys.modules['answer'] = sys.modules[__name__]; __name__ = 'answer'"
FUTURE = re.compile(r"^from __future__ import [^\n(]*(?:\([^)]*\)[^\n]*)?$", re.MULTILINE)
DECIMAL = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")


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


def _fault(code: str, test: Test, limits: Limits) -> str:
    """What went wrong, in a few words; nothing when the test passed."""
    if test.stdin is not None:
        # A right answer must fit, with some space at the ends of its lines.
        size = limits.output + 2 * len(test.stdout.encode(errors="replace"))
        file_mb = limits.file_mb + (size >> 20)
        outcome = best_here().run(code, test.stdin, replace(limits, output=size, file_mb=file_mb))
        if outcome.status == "ok" and not same_output(outcome.stdout, test.stdout):
            return f"printed {outcome.stdout[:100]!r}, expected {test.stdout[:100]!r}"
        return _trouble(outcome)
    # Code that ends the process itself, with exit code 0, has not passed.
    end = secrets.token_hex(16)
    judged = test.calls or "Solution" in test.script
    program = _before(code, f"{PRELUDE if judged else ''}{AS_MODULE}\n")
    program += f"\n\n__name__ = '__main__'\n{test.script}\n\nprint('\\n{end}')\n"
    outcome = best_here().run(program, "", limits)
    if outcome.status == "ok" and not outcome.stdout.rstrip().endswith(end):
        return "ended before the test did"
    return _trouble(outcome)


def _before(code: str, first: str) -> str:
    """`first` before the code, but after imports from the future, which must come first of all."""
    futures = FUTURE.findall(code)
    return "\n".join([*(line.strip() for line in futures), first, FUTURE.sub("", code)])


def _trouble(outcome: Outcome) -> str:
    if outcome.status == "ok":
        return ""
    last = outcome.stderr.strip().rpartition("\n")[2][:200]
    return f"{outcome.status} ({last})" if last else outcome.status


def same_output(printed: str, expected: str) -> bool:
    """Line by line, without the spaces at their ends. Where the expected output has a number with
    decimals, one within a millionth of it will do; everything else is the same to the letter.
    """
    ones, others = (
        [line.rstrip() for line in text.strip().split("\n")] for text in (printed, expected)
    )
    return len(ones) == len(others) and all(map(_same_line, ones, others))


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    pieces, wanted = (re.split(r"(\s+)", line) for line in (one, other))
    return len(pieces) == len(wanted) and all(map(_same_piece, pieces, wanted))


def _same_piece(one: str, other: str) -> bool:
    if one == other:
        return True
    if not DECIMAL.fullmatch(other) or not re.fullmatch(rf"{DECIMAL.pattern}|[-+]?\d+", one):
        return False
    return math.isclose(float(one), float(other), rel_tol=1e-6, abs_tol=1e-9)
