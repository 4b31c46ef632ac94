"""Comparing an answer with its reference as mathematics, by math-verify. Can hang and eat memory.

math-verify's own time limits are off: they need SIGALRM on a main thread, and call a time-out a
wrong answer. The process that runs this is killed instead.
"""

import logging
import re
from decimal import Decimal
from typing import Any

from math_verify import parse, verify

from axolotl_distill.filter.verify.text import Scored, exact, share, without_stop

logging.disable(logging.CRITICAL)


def score(found: list[str], references: list[str], options: dict[str, Any]) -> Scored:
    """The share of references that are equal. `in_prose` says that the one answer found is a whole
    text, in which math-verify looks for the answer itself.
    """

    def same(one: str, other: str) -> bool:
        one, other = without_stop(one), without_stop(other)
        if exact([one], [other], {"ignore": ["space"]})[0] == 1.0:
            return True
        answer = _parse(one) if options["in_prose"] else _expression(one)
        return verify(_expression(other), answer, timeout_seconds=None)

    return share(found, references, same)


def _expression(text: str) -> list[Any]:
    r"""Reads an expression that stands alone: LaTeX with or without dollars, or a plain number.

    Bare, math-verify would take a part of it for the whole: 12 for 12\pi, 1 for x^2+1.
    """
    # What a model puts into a marked answer may still be a sentence.
    text = re.sub(r"\A[\w\s]*\banswer(?: is|:)", "", text, flags=re.IGNORECASE).strip()
    if re.search(r"\\boxed|\\\(|\\\[|\$.+\$", text):
        return _parse(text)
    if re.fullmatch(r"[-+]?\d+(?:\.\d+)?[eE][-+]?\d{1,3}", text):
        text = format(Decimal(text), "f")
    return _parse("\\boxed{" + re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text) + "}")


def _parse(text: str) -> list[Any]:
    return parse(text.replace("−", "-"), parsing_timeout=None)
