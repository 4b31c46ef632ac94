"""Numbers that are not digits with a point: in words, and decimals that go on for ever."""

import re
from fractions import Fraction

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ORDINALS = "third quarter fifth sixth seventh eighth ninth tenth"
BELOW_20 = {word: number for number, word in enumerate(SMALL.split())}
TENS_OF = {word: 10 * number for number, word in enumerate(TENS.split(), 2)}
SCALES = {"trillion": 10**12, "billion": 10**9, "million": 10**6, "thousand": 1000, "dozen": 12}
PARTS = {"half": 2, "fourth": 4} | {word: n for n, word in enumerate(ORDINALS.split(), 3)}
PLURALS = {"halves": 2} | {f"{word}s": number for word, number in PARTS.items() if word != "half"}
WORDS = {*BELOW_20, *TENS_OF, *SCALES, *PARTS, *PLURALS, "hundred"}
WORD = re.compile(r"[ -]*([A-Za-z]+)")

DOTS = r"(?:\.{2,}|…|\\[lc]?dots(?![A-Za-z]))"
REPEATING = re.compile(
    r"(?P<whole>\d*)(?P<point>[.,])\{?(?P<first>\d*)(?:"
    r"\\(?:overline|bar)\s*(?:\{\s*(?P<bar>\d+)\s*\}|(?P<barred>\d))"
    r"|\\dot\s*\{?(?P<one>\d)\}?(?:(?P<between>\d*)\\dot\s*\{?(?P<two>\d)\}?)?"
    r"|\((?P<round>\d+)\)"
    r"|(?P<marks>(?:\d[\u0304\u0305])+)"
    rf"|(?P<dots>(?<=\d)\s?{DOTS}))\}}?(?!\s*(?:\d|{DOTS}))"
)


def in_words(text: str, at: int) -> tuple[Fraction, int] | None:
    """(value, where it ends) of a number in English words: "one hundred and five", "two thirds".

    None when it is none, or more than one: "one twenty".
    """
    words: list[str] = []
    ends: list[int] = []
    while match := WORD.match(text, ends[-1] if ends else at):
        words.append(match[1].casefold())
        ends.append(match.end())
    value, used = _fraction(words) or _number(words) or (None, 0)
    if value is None or set(words[used:]) & WORDS:
        return None
    return value, ends[used - 1]


def _fraction(words: list[str]) -> tuple[Fraction, int] | None:
    """Of "a half", "two thirds", "one and a half"."""
    if words[:1] == ["half"]:
        return Fraction(1, 2), 1
    one, none = (Fraction(1), 1), (Fraction(0), 0)
    above, used = one if words[:1] == ["a"] else _number(words) or none
    below = words[used : used + 1]
    if used and below and (n := (PARTS if above == 1 else PLURALS).get(below[0])):
        return Fraction(above, n), used + 1
    if used and words[:1] != ["a"] and below == ["and"]:
        part, more = _fraction(words[used + 1 :]) or one
        return (above + part, used + 1 + more) if part < 1 else None
    return None


def _number(words: list[str]) -> tuple[Fraction, int] | None:
    total, at, largest = 0, 0, 10**15
    while found := _below_thousand(words, at):
        value, end = found
        scale = SCALES.get(words[end], 1) if end < len(words) else 1
        if scale >= largest:
            break
        total, at, largest = total + value * scale, end + (scale > 1), scale
        if scale in (1, 12):
            break
        after = words[at : at + 2]
        if after[:1] == ["and"] and len(after) == 2 and after[1] in BELOW_20.keys() | TENS_OF:
            at += 1
    return (Fraction(total), at) if at else None


def _below_thousand(words: list[str], at: int) -> tuple[int, int] | None:
    """Also "twelve hundred"."""
    if words[at : at + 1] == ["a"] and words[at + 1 : at + 2][:1] in (
        *([scale] for scale in SCALES),
        ["hundred"],
    ):
        small, at = 1, at + 1
    elif found := _below_hundred(words, at):
        small, at = found
    else:
        return None
    if words[at : at + 1] == ["hundred"]:
        at += 1
        after = at + (words[at : at + 1] == ["and"])
        rest, end = _below_hundred(words, after) or (0, at)
        return small * 100 + rest, end
    return small, at


def _below_hundred(words: list[str], at: int) -> tuple[int, int] | None:
    word = words[at] if at < len(words) else ""
    if word in BELOW_20:
        return BELOW_20[word], at + 1
    if word not in TENS_OF:
        return None
    one = BELOW_20.get(words[at + 1], 0) if at + 1 < len(words) else 0
    return (TENS_OF[word] + one, at + 2) if 0 < one < 10 else (TENS_OF[word], at + 1)


def repeating(text: str, at: int, comma: bool) -> tuple[Fraction, int | None, int] | None:
    r"""(value, decimals, where it ends) of 0.\overline{3}, 0.\dot{3}, 0.(3), 0.333…

    A mark is exact, and so are dots after a period that was written out: one digit three times,
    more digits twice. Other dots cut a number of which at least six decimals must be there.
    """
    match = REPEATING.match(text, at)
    if match is None or (match["point"] == "," and (match["round"] or match["dots"]) and not comma):
        return None
    first, period = match["first"], match["bar"] or match["barred"] or match["round"]
    if match["one"]:
        period = match["one"] + (match["between"] or "") + (match["two"] or "")
    elif match["marks"]:
        period = re.sub(r"\D", "", match["marks"])
    elif match["dots"]:
        split = _period(first)
        if split is None:
            number = Fraction(int(match["whole"] + first or 0), 10 ** len(first))
            return (number, len(first), match.end()) if len(first) > 5 else None
        first, period = split
    whole = int((match["whole"] + first) or 0)
    nines = (10 ** len(period) - 1) * 10 ** len(first)
    return Fraction(whole, 10 ** len(first)) + Fraction(int(period), nines), None, match.end()


def _period(digits: str) -> tuple[str, str] | None:
    """(what comes first, the period) of decimals that show their period."""
    digits = digits[:200]
    for used in range(1, len(digits)):
        for length in range(1, used + 1):
            first, period = digits[: used - length], digits[used - length : used]
            times = (len(digits) - len(first)) // length
            if times >= (3 if length == 1 else 2) and digits == first + period * times:
                return first, period
    return None
