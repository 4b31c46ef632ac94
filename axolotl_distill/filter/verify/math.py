"""Comparing an answer with its reference as mathematics. Can hang and eat memory.

Numbers, choices, words, times and ratios are read here, exactly; everything else is math-verify's.
Its own time limits are off: they need SIGALRM on a main thread, and call a time-out a wrong answer.
The process that runs this is killed instead.
"""

import logging
import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, grader, parse, verify
from sympy import Float, MatrixBase, Rational

from axolotl_distill.filter.verify import choice, equations, prose, quantity
from axolotl_distill.filter.verify.moments import same_moment
from axolotl_distill.filter.verify.normal import (
    condition,
    expression,
    normal,
    sentence,
    signed,
    spaced,
    words,
)
from axolotl_distill.filter.verify.text import Scored, share, without_stop
from axolotl_distill.filter.verify.units import Unit, read_unit

for _chatty in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL + 1)

# math-verify takes any last `t`, `c` or `d` for a unit: 3t would be 3.
WITH_UNITS = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
)
ALONE = [LatexExtractionConfig(normalization_config=WITH_UNITS), ExprExtractionConfig()]
E_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?!\w)")
UNIT = re.compile(r"(?<=[\d})\]!])\s*(\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?\d\}?)?)$")


def score(found: list[str], references: list[str], options: dict[str, Any]) -> Scored:
    """The share of references that are equal. `in_prose` says that the one answer found is a whole
    text, in which the answer is still to be found.
    """
    compare = _in_prose if options["in_prose"] else _equal
    return share(found, references, lambda one, other: compare(one, other))


def _in_prose(text: str, reference: str) -> bool:
    text = signed(spaced(normal(text)))
    wanted = expression(without_stop(normal(reference)))
    if choice.is_choice(wanted):
        named = choice.in_prose(text)
        if named is not None or len(wanted) == 1:
            return named == choice.letter(wanted)
    marked = prose.marked(text)
    if marked == "":
        return False
    if marked is not None:
        answer = expression(without_stop(marked))
        if (verdict := _read(answer, wanted)) is not None:
            return verdict
        if prose.is_formula(answer):
            return _verify(wanted, _alone(answer))
    if len(text) < 200 and _read(expression(without_stop(text)), wanted):
        return True
    if prose.is_doubted(text):
        return False
    if words(wanted) is not None:
        return False
    expected = quantity.quantity(wanted, comma=False)
    if expected is not None and expected.unit.powers:
        last = prose.last_quantity(text)
        return last is not None and quantity.same(last, expected)
    return _verify(wanted, _parse(prose.without_money(text)))


def _equal(one: str, other: str) -> bool:
    answer, wanted = (_bare(expression(without_stop(normal(text)))) for text in (one, other))
    verdict = _read(answer, wanted)
    return _verify(wanted, _alone(answer)) if verdict is None else verdict


def _bare(text: str) -> str:
    """Without the sentence that a model may put into a marked answer, too."""
    text = re.sub(
        r"\A(?:\\text\s*\{)?[\w\s]*\banswer(?: is|:)\s*:?\s*\}?", "", text, flags=re.IGNORECASE
    )
    text = re.sub(r"\s*(?:\\text\s*\{)?\s*is the (?:final )?answer\W*\Z", "", text)
    whole = re.fullmatch(r"\\text\s*\{([^{}]*\d[^{}]*)\}", text)
    return condition((whole[1] if whole else text).strip(" *"))


def _read(answer: str, wanted: str) -> bool | None:
    """The verdict where both can be read for certain."""
    if " ".join(answer.split()) == " ".join(wanted.split()):
        return True
    if choice.is_choice(wanted):
        named = choice.letter(answer) or (
            choice.letter(f"({answer})") if len(wanted) > 1 and len(answer) == 1 else None
        )
        if named is not None:
            return named == choice.letter(wanted)
    if (verdict := same_moment(answer, wanted)) is not None:
        return verdict
    one = quantity.quantity(answer, comma="," not in wanted)
    other = quantity.quantity(wanted, comma=False)
    if one is not None and other is not None:
        return quantity.same(one, other)
    told, expected = words(answer), words(wanted)
    if told is not None and expected is not None:
        return told == expected
    if _different(_unit(answer)[1], _unit(wanted)[1]):
        return False
    if (asked := sentence(wanted)) is not None:
        return sentence(answer) == asked
    return equations.compare(answer, wanted, _equal)


def _unit(text: str) -> tuple[str, Unit | None]:
    """An expression, and the unit in a text right after it."""
    if (match := UNIT.search(text)) and (unit := read_unit(match[1])):
        return text[: match.start()], unit
    return text, None


def _different(one: Unit | None, other: Unit | None) -> bool:
    sizes = one.sizes(other) if one and other else (1, 1)
    return sizes is None or sizes[0] != sizes[1]


def _verify(wanted: str, answer: list[Any]) -> bool:
    return verify(_alone(wanted), answer, timeout_seconds=None, allow_set_relation_comp=True)


def _alone(text: str) -> list[Any]:
    r"""Reads an expression that stands alone.

    Bare, math-verify would take a part of it for the whole: 12 for 12\pi, 1 for x^2+1.
    """
    text = _unit(text)[0]
    text = E_NUMBER.sub(r"(\1 \\times 10^{\2})", text)
    text = re.sub(r"(?<=\d)[ _'](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[\w)}])\*\*\s*(-?\d+)", r"^{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)
    return parse("\\boxed{" + text + "}", ALONE, parsing_timeout=None)


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)


# math-verify rounds to six decimals and takes what is below 1e-15 for nothing, wherever it compares
# two values: 1e-7 is 2e-7 then, and 1/1500! is 1/1501!. All its comparisons, of sets, tuples and
# matrices too, come through this one function.
_numeric_eq = grader.sympy_numeric_eq


def _numeric(a: Any, b: Any, *precision: int) -> bool:
    return _numeric_eq(a, b, *precision) and not _apart(a, b)


def _apart(a: Any, b: Any) -> bool:
    """Whether two values differ in their leading digits, as far as they can be computed."""
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        return False  # its elements come here one by one
    if any(grader.get_pct_val(one) is not None for one in (a, b)):
        a, b = (grader.get_pct_val(one, one) for one in (a, b))
    try:
        symbols = sorted(a.free_symbols | b.free_symbols, key=str)
        # Any point will do: that two different formulas meet at it is out of the question.
        point = {s: Rational(7919 + 101 * i, 5281 + 97 * i) for i, s in enumerate(symbols)}
        x, y = (one.subs(point).evalf(30) for one in (a, b))
        allowed = 1e-5 if a.has(Float) or b.has(Float) else 1e-12
        return bool(abs(x - y) > allowed * max(abs(x), abs(y)))
    except (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError):
        return False


grader.sympy_numeric_eq = _numeric
