"""The answer that a text in prose names, where it names one for certain."""

import re
from collections import deque

from axolotl_distill.filter.verify.extract import MARKUP, NUMBER
from axolotl_distill.filter.verify.normal import expression
from axolotl_distill.filter.verify.quantity import Quantity, quantity

# What announces a final answer, in the languages of the data sets that there are.
ANNOUNCED = re.compile(
    r"(?:final |correct |right )?answer(?:\s+(?:is|are|would be|must be)|\W{0,4}:)\s*:?"
    r"|(?:答案|答え|答)\s*(?:应该|應該)?\s*(?:是|为|為|は|:)\s*:?|####",
    re.IGNORECASE,
)
# Where a sentence ends: not at the point of 3.5, of `p.m.`, of \sqrt{.5}.
END = re.compile(
    r"[.!?;](?=\s|\*|$)|,(?=\s+(?:not|but|since|because|so|which|as|and)\b)|,? 而不?是"
)
FORMULA = re.compile(
    r"(?:\\[A-Za-z]+|(?:and|or|base)(?![A-Za-z])|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[^A-Za-z])+"
)
# A dollar sign before a number that words follow opens no formula.
MONEY = re.compile(
    r"\\?\$(?=\s?\d[\d,]*(?:\.\d+)?(?:\s+[A-Za-z]{2,}|[.,;:!?]*\s*(?:$|\n)|\s*[-+=]\s*\$))"
)


def marked(text: str) -> str | None:
    """What the last announcement announces, up to the end of its sentence."""
    last = next(iter(deque(ANNOUNCED.finditer(text), maxlen=1)), None)
    if last is None:
        return None
    rest = text[last.end() : last.end() + 2000]
    line = next((line for line in rest.splitlines() if line.strip(MARKUP)), "")
    line = line.strip(MARKUP)
    end = END.search(line)
    return (line[: end.start()] if end else line).strip(MARKUP) or None


def is_formula(text: str) -> bool:
    """Whether no words are in it, so that it can be read as a whole."""
    return FORMULA.fullmatch(text) is not None


def without_money(text: str) -> str:
    return MONEY.sub("", text)


def last_quantity(text: str) -> Quantity | None:
    """The last number of a text, with the unit that follows it."""
    last = next(iter(deque(NUMBER.finditer(text), maxlen=1)), None)
    if last is None:
        return None
    rest = text[last.start() : last.start() + 200].partition("\n")[0]
    end = END.search(rest)
    return quantity(expression(rest[: end.start()] if end else rest), comma=False)
