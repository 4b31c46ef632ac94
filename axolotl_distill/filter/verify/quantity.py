r"""Numbers as people write them, with percent signs, currencies, units and bases, read exactly.

Each reader takes a whole text in `normal.expression`'s spelling, or says None: what is more than a
number is mathematics, and left to math-verify.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import inf

from axolotl_distill.filter.verify.numerals import in_words, repeating
from axolotl_distill.filter.verify.units import Unit, read_unit

LARGEST = 4000  # digits, and exponents: more are not read

GROUPED = re.compile(
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?:\.\d+)?(?!,?\d)"  # English, Indian
    r"|\d{1,3}(?:([ _'])\d{3})(?:\1\d{3})*(?:[.,]\d+)?(?![ _',]?\d)"  # SI, Swiss
    r"|\d{1,3}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})(?![.,]?\d)"  # German
)
PLAIN = re.compile(r"\d+(?:\.\d+)?\.?(?!\.?\d)|\.\d+")
COMMA = re.compile(r"\d+,\d+(?![,.]?\d)")
SCALE = {
    **{"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9},
    **{"trillion": 12, "千": 3, "万": 4, "亿": 8},
}
SCALED = re.compile(rf"\s*(?:\\text\s*\{{\s*)?({'|'.join(SCALE)})(?![a-z])(?:\s*\}})?")
SHORT_SCALE = {"k": 3, "K": 3, "M": 6, "m": 6, "mn": 6, "bn": 9, "B": 9, "T": 12}
SHORT_SCALED = re.compile(
    rf"\s?({'|'.join(sorted(SHORT_SCALE, key=len, reverse=True))})(?![A-Za-z])"
)
EXPONENT = r"\{?\s*\(?\s*([-+]?\s*\d+)\s*\)?\s*\}?"
POWER = re.compile(rf"10\s*(?:\^|\*\*)\s*{EXPONENT}")
TIMES_POWER = re.compile(rf"\s*(?:\\times|\\cdot|\*|x)\s*{POWER.pattern}")
E_POWER = re.compile(r"[eE]([-+]?\d+)(?!\w)")
FRACTION = re.compile(r"\\frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*(-?[\d.,]+)\s*\}")
SLASH = re.compile(r"(\d+)\s*/\s*(\d+)(?![\d.])")
MONEY = re.compile(
    r"(?:(?:US)?\s*\\\$|(?:CN)?¥|[€£₹]|人民币|(?:USD|EUR|GBP|CNY|RMB|JPY|INR|Rs)(?![A-Za-z])\.?)\s*"
)
PERCENT = re.compile(r"\s*(?:\\?%|(?:\\text\s*\{\s*)?(?:percent(?:age)?|per cent|pct)\s*\}?)")
PREFIXED = re.compile(r"0(?:[xX][0-9a-fA-F]+|[bB][01]+|[oO][0-7]+)")
NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
BASES = {name: base for base, name in enumerate(NAMES, 2)} | {"twelve": 12, "sixteen": 16}
BASE = re.compile(
    r"\(?\s*(?:\\text\s*\{)?([0-9A-Za-z]+)\}?\s*\)?\s*"
    r"(?:_\s*\{?\s*\(?(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\)?\s*\}?"
    r"|\(?\s*(?:\\text\s*\{)?[\s(]*(?:in )?base[\s}]+(\w+)\s*\)?\s*\}?\s*\)?)"
)
NO_UNIT = Unit(frozenset())
# Units that are written right at their number, where another word would be variables.
CLOSE = {"km", "cm", "mm", "kg", "mg", "ml", "mph", "kmh", "ft", "lb", "lbs", "hr", "hrs", "min"}
CLOSE |= {"mins", "sec", "secs", "hours", "minutes", "seconds", "meters", "usd", "eur"}
SIGN = re.compile(r"((?:minus|negative)(?= )|[-+]?)\s*", re.IGNORECASE)
MARK = re.compile(r"\\text\s*\{([^{}]*)\}")
PART = re.compile(r"(\d+(?:\.\d+)?)\s*([^\W\d_]+|''?|[\"°¢])")
COMPOUND = re.compile(rf"{PART.pattern}(?:(?:,?\s+and|,)?\s*{PART.pattern})+")
MIXED = re.compile(r" ?(?=\\frac)| (?=\d+ ?/)")


@dataclass(frozen=True)
class Quantity:
    """A number, exactly as written. places: the decimals it is written with, None when exact."""

    value: Fraction
    places: int | None = None
    percent: bool = False
    unit: Unit = NO_UNIT


def quantity(text: str, *, comma: bool) -> Quantity | None:
    """comma: whether `3,5` may be a number with a decimal comma; else it is a list."""
    text = text.strip()
    if not text.endswith(".."):
        text = text.removesuffix(".")
    if upright := re.fullmatch(r"\\text\s*\{\s*([-\w][^{}]*)\}", text):
        text = upright[1].strip()
    if whole := _compound(text):
        return whole
    based = _based(text)
    if based is not None:
        return Quantity(based)
    negative, at = _sign(text, 0)
    money = MONEY.match(text, at)
    if money:
        again, at = _sign(text, money.end())
        negative = negative != again
    number = _number(text, at, comma)
    if number is None:
        return None
    value, places, at = number
    scaled = SCALED.match(text, at) or (money and SHORT_SCALED.match(text, at))
    if scaled:
        power = SCALE.get(scaled[1]) or SHORT_SCALE[scaled[1]]
        value, at = value * 10**power, scaled.end()
        places = None if places is None else places - power
    percent = PERCENT.match(text, at)
    at = percent.end() if percent else at
    unit = read_unit(text[at:]) if _may_be_unit(text[at:]) else None
    if unit is None:
        return None
    if money:
        name = "cny" if money[0].startswith("CN¥") else re.sub(r"\W", "", money[0])
        name = name or money[0].strip().lstrip("\\")
        unit = read_unit(name) or unit
    return Quantity(-value if negative else value, places, bool(percent), unit)


def _sign(text: str, at: int) -> tuple[bool, int]:
    """(whether it is a minus, where what it stands before begins)."""
    match = SIGN.match(text, at)
    assert match is not None  # nothing matches too
    return match[1] not in ("", "+"), match.end()


def _compound(text: str) -> Quantity | None:
    """Of one quantity in several units, from large to small: 1 hour 30 minutes, 5 ft 3 in."""
    text = MARK.sub(r" \1 ", text).replace("^\\circ", "°").strip()
    text = re.sub(r"\A\\\$\s*(\d+)(?!\d|\.\d)", r"\1 dollars", text)
    if len(text) > 200 or not COMPOUND.fullmatch(text):
        return None
    value = Fraction(0)
    first: Unit | None = None
    last: Fraction | None = None
    for number, name in PART.findall(text):
        hours = first is not None and first == read_unit("h")
        unit = read_unit("min" if name == "m" and hours else name)
        if unit is None or not unit.powers:
            return None
        sizes = unit.sizes(first or unit)
        if sizes is None or (last is not None and sizes[0] >= last):
            return None
        first, last = first or unit, sizes[0]
        value += Fraction(number) * sizes[0] / sizes[1]
    return Quantity(value, unit=first or NO_UNIT)


def _may_be_unit(rest: str) -> bool:
    """Of what follows a number. A letter right at it is a variable, most single ones anywhere."""
    if not rest.strip() or re.match(r"\s*(?:\\text|\^\\circ|\\\$|\\frac)", rest):
        return True
    word = re.match(r"( *)/?([^\W\d_]+)", rest)
    if word is None or not word[2].isascii():
        return word is not None or re.match(r"\s*(?:[€£¥₹¢°]|''?\s*$|\"\s*$)", rest) is not None
    if len(word[2]) == 1:
        return bool(word[1]) and word[2] in "msghL"
    return bool(word[1]) or word[2].casefold() in CLOSE


def _number(text: str, at: int, comma: bool) -> tuple[Fraction, int | None, int] | None:
    """(value, decimals, where it ends) of an unsigned number."""
    if endless := repeating(text, at, comma):
        return endless
    if told := in_words(text, at):
        return told[0], None, told[1]
    power = POWER.match(text, at)
    if power:
        exponent = _exponent(power[1])
        return None if exponent is None else (Fraction(10) ** exponent, -exponent, power.end())
    fraction = FRACTION.match(text, at) or SLASH.match(text, at)
    if fraction:
        return _divided(Fraction(0), fraction)
    body = GROUPED.match(text, at) or (COMMA.match(text, at) if comma else None)
    body = body or PLAIN.match(text, at)
    if body is None or len(body[0]) > LARGEST:
        return None
    digits, places = _digits(body[0], comma)
    at = body.end()
    if places == 0:
        # 2 3/4 and 2\frac{3}{4}: no product of the two has ever been written so as an answer.
        mixed = MIXED.match(text, at)
        fraction = mixed and (FRACTION.match(text, mixed.end()) or SLASH.match(text, mixed.end()))
        if fraction:
            return _divided(Fraction(digits), fraction)
    value, exact = Fraction(digits), places == 0
    if not exact:
        value = Fraction(digits) / 10**places
    if scientific := E_POWER.match(text, at) or TIMES_POWER.match(text, at):
        exponent = _exponent(scientific[1])
        if exponent is None:
            return None
        value, places = value * Fraction(10) ** exponent, places - exponent
        exact, at = False, scientific.end()
    return value, None if exact else places, at


def _digits(text: str, comma: bool) -> tuple[int, int]:
    """The digits as one integer, and how many of them are decimals."""
    text = text.rstrip(".")
    decimal_comma = re.fullmatch(r"(?:\d{1,3}(?:[ _'.]\d{3})+,\d+)|\d{1,3}(?:\.\d{3}){2,}", text)
    may_be = comma and COMMA.fullmatch(text) and not GROUPED.fullmatch(text)
    mark = "," if decimal_comma or may_be else "."
    whole, _, decimals = text.partition(mark)
    whole = re.sub(r"\D", "", whole)
    return int(whole + decimals), len(decimals)


def _exponent(text: str) -> int | None:
    digits = re.sub(r"\s", "", text)
    return int(digits) if len(digits) < 6 and abs(int(digits)) <= LARGEST else None


def _divided(whole: Fraction, match: re.Match[str]) -> tuple[Fraction, None, int] | None:
    parts = [part.replace(",", "") for part in match.groups()]
    if not all(re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)", p) and len(p) < LARGEST for p in parts):
        return None
    above, below = map(Fraction, parts)
    return (whole + above / below, None, match.end()) if below else None


def _based(text: str) -> Fraction | None:
    """0x1F, 1011_2, 1F_{16}, 1011 base 2."""
    if PREFIXED.fullmatch(text):
        return Fraction(int(text, 0)) if len(text) < LARGEST else None
    match = BASE.fullmatch(text)
    if match is None or len(match[1]) > LARGEST:
        return None
    name = match[2] or match[3]
    base = BASES.get(name.lower()) or (int(name) if re.fullmatch(r"[0-9]{1,2}", name) else 0)
    # A letter with an index is a variable; a number with one is in that base.
    if not 2 <= base <= 36 or not (re.search(r"\d", match[1]) or (base == 16 and match[1][1:])):
        return None
    try:
        return Fraction(int(match[1], base))
    except ValueError:
        return None


def same(one: Quantity, other: Quantity) -> bool:
    """Equal, a rounding to at least six decimals apart, and in units that mean the same."""
    if (one.percent and other.unit.powers) or (other.percent and one.unit.powers):
        return False
    sizes = one.unit.sizes(other.unit)
    if sizes is None:
        return False
    if sizes[0] != sizes[1]:
        return one.value * sizes[0] == other.value * sizes[1]
    if one.percent == other.percent:
        return close(one, other)
    # `10%` is 10 to those who ask for percents, and 0.1 to the others; half a percent is no half.
    part, plain = (one, other) if one.percent else (other, one)
    places = None if part.places is None else part.places + 2
    if close(Quantity(part.value / 100, places), plain):
        return True
    return abs(plain.value) >= 1 and close(part, plain)


def close(one: Quantity, other: Quantity) -> bool:
    """Equal, or one is the other rounded to 6 decimals or more and has 4 digits that count."""
    if one.value == other.value:
        return True
    short, long = sorted((one, other), key=lambda q: inf if q.places is None else q.places)
    if (
        short.places is None
        or short.places < 6
        or abs(short.value) * Fraction(10) ** short.places < 1000
    ):
        return False
    apart = abs(one.value - other.value) * Fraction(10) ** short.places
    rounded = apart <= Fraction(1, 2)
    cut = apart < 1 and short.places > 6 and (long.places is None or long.places > short.places)
    return rounded or cut
