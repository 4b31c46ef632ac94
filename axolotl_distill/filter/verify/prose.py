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
# Where a clause begins, of which a denial may be.
CLAUSE = re.compile(
    r"[.!?\n。，,;:](?=\s|$)|[。，]|\b(?:so|and|(?<!anything )but|because|since|thus)\b|而是|所以"
)
# In a number's clause, before it: it is denied, or one of several.
DENIED = re.compile(
    r"\b(?:not|never|cannot|neither|either|whether|unless|anything|might|may|could|maybe|"
    r"perhaps|possibly|nicht|kein\w*)\b|n't\b|\bif\b.*\banswer\b|\bis the answer\b"
    r"|\\ne(?:q)?(?![A-Za-z])|不|可能|如果",
    re.IGNORECASE,
)
# Right before it: it is a bound, a rounded value, or the number of something else.
BOUND = re.compile(
    r"(?:\b(?:about|approximately|around|roughly|nearly|almost|(?:more|less|fewer|greater) than|"
    r"at least|at most|up to|step|equation|eq|theorem|lemma|page|figure|table|section|chapter)\b"
    r"|\\approx|[<>]|\\[lg]eq?(?![A-Za-z]))[\s.($]*$",
    re.IGNORECASE,
)
# Right after it: it is wrong, asked, or one of several.
WRONG = re.compile(
    r"[\s$*)]*(?:\?|or\b|oder\b|或|(?:is|was|ist)\s+(?:not|in\w+|wrong|false|falsch)\b|是?错)",
    re.IGNORECASE,
)
# After an announcement: it is taken back.
BACK = re.compile(
    r"(?:\A|[.!?\n。])\s*(?:wait|actually|no\b|correction|on second thought|sorry|oops|不对|更正)",
    re.IGNORECASE,
)


def marked(text: str) -> str | None:
    """What the last announcement announces, up to the end of its sentence; nothing where that is
    doubted or taken back, None where it is denied or there is none."""
    last = next(iter(deque(ANNOUNCED.finditer(text), maxlen=1)), None)
    if last is None:
        return None
    number = NUMBER.search(text, last.end(), last.end() + 2000)
    if number is not None:
        if _is_denied(text, number):
            return None
        back = BACK.search(text, number.end())
        others = NUMBER.findall(text, back.end()) if back else []
        if _is_doubted(text, number) or any(other != number[0] for other in others):
            return ""
    rest = text[last.end() : last.end() + 2000]
    line = next((line for line in rest.splitlines() if line.strip(MARKUP)), "")
    line = line.strip(MARKUP)
    end = END.search(line)
    return (line[: end.start()] if end else line).strip(MARKUP) or None


def is_doubted(text: str) -> bool:
    """Whether its last number is denied, doubted, asked, a bound, or counts something else."""
    last = next(iter(deque(NUMBER.finditer(text), maxlen=1)), None)
    return last is not None and (_is_denied(text, last) or _is_doubted(text, last))


def _is_denied(text: str, number: re.Match[str]) -> bool:
    return DENIED.search(_clause(text, number)) is not None


def _is_doubted(text: str, number: re.Match[str]) -> bool:
    after = text[number.end() : number.end() + 40]
    return bool(BOUND.search(_clause(text, number)) or WRONG.match(after))


def _clause(text: str, number: re.Match[str]) -> str:
    """What stands before a number in its clause."""
    return CLAUSE.split(text[max(0, number.start() - 200) : number.start()])[-1]


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
