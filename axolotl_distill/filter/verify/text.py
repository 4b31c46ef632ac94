"""Comparing an answer with its reference as text, as a number, and by a pattern."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from axolotl_distill.filter.verify.extract import NUMBER
from axolotl_distill.filter.verify.normal import expression, signed
from axolotl_distill.filter.verify.quantity import FRACTION, TIMES_POWER

SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?:[ '_]\d{3})+(?!\d)")
CURRENCY = re.compile(r"(?<=[-−])(?:[$€£¥]|USD|EUR|GBP|CNY|RMB|JPY|INR) ?(?=[.\d])")

Scored = tuple[float, str]  # score, from 0 to 1, and what was seen


def share(found: list[str], references: list[str], same: Callable[[str, str], bool]) -> Scored:
    """How many of the references, compared in order, their answers match."""
    hits = sum(same(one, reference) for one, reference in zip(found, references, strict=False))
    return hits / len(references), seen(found, references)


def seen(found: list[str], references: list[str]) -> str:
    """For people: what was answered and what was expected."""
    answer, reference = ("; ".join(texts)[:200] for texts in (found, references))
    return f"answered {answer!r}, expected {reference!r}"


def without_stop(text: str) -> str:
    """Without the full stop at its end, which ends a sentence and is no part of a number."""
    return re.sub(r"(?<=[\w)\]}%$])\.$", "", text.strip())


def exact(found: list[str], references: list[str], options: dict[str, Any]) -> Scored:
    """Equal after Unicode composition and without what `ignore` names."""

    def normal(text: str) -> str:
        text = unicodedata.normalize("NFC", text)
        if "space" in options["ignore"]:
            text = " ".join(text.split())
        if "punctuation" in options["ignore"]:
            text = text.strip(" .,;:!?\"'`*_“”‘’")
        return text.casefold() if "case" in options["ignore"] else text

    return share(found, references, lambda one, other: normal(one) == normal(other))


def numeric(found: list[str], references: list[str], options: dict[str, Any]) -> Scored:
    """Equal within max(tolerance · |reference|, absolute_tolerance).

    Currency signs, thousands separators and units around the number make no difference; `50%` is
    50 or 0.5, whichever fits.
    """

    def same(one: str, other: str) -> bool:
        answers, wanted = readings(one), readings(other)
        return any(
            abs(a - w) <= max(options["tolerance"] * abs(w), options["absolute_tolerance"])
            for a in answers
            for w in wanted
        )

    return share(found, references, same)


def readings(text: str) -> list[float]:
    """The values that the last number in `text` may mean; none where there is no number."""
    text = TIMES_POWER.sub(r"e\1", signed(expression(text)))
    text = FRACTION.sub(r"\1/\2", text).replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[A-Za-z])\^\{?-?\d\}?", "", text)  # the square of square metres
    text = SPACED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    numbers = NUMBER.findall(CURRENCY.sub("", text))
    if not numbers:
        return []
    number = re.sub(r"[,$€£¥\s+]", "", numbers[-1]).replace("−", "-")
    above, _, below = number.rstrip("%").partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return []
    return [value, value / 100] if number.endswith("%") else [value]


def pattern(found: list[str], references: list[str], options: dict[str, Any]) -> Scored:
    """The share of references whose pattern is found. Can backtrack for ever, so in a worker."""
    text = "\n".join(found)
    patterns = [options["pattern"].replace("{answer}", re.escape(r)) for r in references or [""]]
    hits = sum(re.search(one, text) is not None for one in patterns)
    return hits / len(patterns), f"{text[-200:]!r} against {'; '.join(patterns)[:200]!r}"
