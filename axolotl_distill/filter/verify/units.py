r"""Units of measurement: which are the same, which can be turned into each other.

A unit that is not in the table is a word of its own: five apples are no five oranges.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

# dimension -> names of a unit -> how many of the dimension's own it is.
TABLE: dict[str, dict[str, int | str]] = {
    "length": {
        **{"m metre meter": 1, "km kilometre kilometer": 1000, "dm decimetre decimeter": "1/10"},
        **{"cm centimetre centimeter": "1/100", "mm millimetre millimeter": "1/1000"},
        **{"um micrometre micrometer": "1/1000000", "nm nanometre nanometer": "1/1000000000"},
        **{"in inch inche": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144"},
        **{"mi mile": "1609.344", "米": 1, "千米 公里": 1000, "厘米": "1/100", "毫米": "1/1000"},
    },
    "mass": {
        **{"kg kilogram kilo 千克 公斤": 1, "g gram gm 克": "1/1000", "mg milligram": "1/1000000"},
        **{"tonne ton 吨": 1000, "lb": "0.45359237", "oz ounce": "0.028349523125"},
    },
    "time": {
        **{"s sec second 秒": 1, "ms millisecond": "1/1000", "min minute 分钟": 60},
        **{"h hr hour 小时": 3600, "day 天": 86400, "week wk": 604800},
    },
    "months": {"month": 1, "yr year 年": 12, "decade": 120, "century centurie": 1200},
    "volume": {
        **{"l liter litre": "1/1000", "ml milliliter millilitre": "1/1000000"},
        **{"gal gallon": "0.003785411784"},
    },
    "dollar": {"$ us$ dollar buck usd 美元": 1, "¢": "1/100"},
    "euro": {"€ eur euro 欧元": 1, "eurocent": "1/100"},
    "sterling": {"£ gbp quid 英镑": 1, "pence penny": "1/100"},
    "yen": {"jpy yen 円 日元": 1},
    "yuan": {"rmb cny yuan 元 块 人民币": 1},
    "rupee": {"₹ inr rupee rs": 1},
    "angle": {"deg": 1, "arcmin arcminute": "1/60", "arcsec arcsecond": "1/3600"},
    "radian": {"rad radian": 1},
    "celsius": {"°c": 1},
    "fahrenheit": {"°f": 1},
    "energy": {"joule": 1, "kj kilojoule": 1000, "kcal": 4184},
    "force": {"newton": 1},
    "power": {"watt": 1, "kw kilowatt": 1000},
}
MONEY = {"dollar", "euro", "sterling", "yen", "yuan", "rupee"}
UNITS = {
    name: (dimension, Fraction(size))
    for dimension, units in TABLE.items()
    for names, size in units.items()
    for name in names.split()
}
# Words and signs of several meanings; one that what they are compared with has is the right one.
MEANINGS = {
    "pound": ("lb", "£"),
    "cent": ("¢", "eurocent"),
    "¥": ("jpy", "cny"),
    "degree": ("deg", "°c", "°f"),
    "°": ("deg", "°c", "°f"),
    "'": ("ft", "arcmin"),
    '"': ("in", "arcsec"),
    "''": ("in", "arcsec"),
}
PHRASES = {
    "us dollar": "usd",
    "american dollar": "usd",
    "pound sterling": "£",
    "british pound": "£",
    "euro cent": "eurocent",
    "chinese yuan": "yuan",
    "japanese yen": "yen",
}
# Capitals that are units in upright letters only: a variable is none.
UPRIGHT = {"N": "newton", "J": "joule", "W": "watt", "C": "coulomb", "V": "volt", "K": "kelvin"}
SHORT = {"mph": "mile/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s"}
NO_UNIT = {"", "unit", "square unit", "sq unit", "cubic unit", "unit^2", "unit^3"}
# What makes another value of a number, or another sentence.
NOT_A_UNIT = re.compile(
    r"(?:or|and|to|not|past|but|if|when|is|are|more|les|plu|minu|time|choose|factorial|mod|pi|sin|co|"
    r"tan|log|ln|exp|sqrt|squared|cubed|base|half|third|quarter|x|y|z|i|e|n|k|a|b|c|d|"
    r"hundred|thousand|million|billion|trillion|dozen)(?: |$)"
)
MARK = re.compile(r"\\text\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\frac\s*\{([^{}]*(?:\{[^{}]*\})?)\}\s*\{([^{}]*(?:\{[^{}]*\})?)\}")


@dataclass(frozen=True)
class Unit:
    """powers: (dimension, power) each; size: how many of the dimensions' own units it is.

    or_else   what else its name may mean: a pound is a weight or money
    """

    powers: frozenset[tuple[str, int]]
    size: Fraction = Fraction(1)
    or_else: tuple["Unit", ...] = ()

    def sizes(self, other: "Unit") -> tuple[Fraction, Fraction] | None:
        """Their sizes in what both measure, in one of their meanings; None when it is not the same.

        What has no unit is in the other one's.
        """
        if not self.powers or not other.powers:
            return Fraction(1), Fraction(1)
        for one in (self, *self.or_else):
            for two in (other, *other.or_else):
                if one._in_same(two):
                    return one.size, two.size
        return None

    def _in_same(self, other: "Unit") -> bool:
        """Whether they measure the same. $18 a day are $18."""
        return self.powers == other.powers or (
            self._above() == other._above() and {name for name, _ in self._above()} <= MONEY
        )

    def _above(self) -> frozenset[tuple[str, int]]:
        return frozenset(one for one in self.powers if one[1] > 0)


def read_unit(text: str) -> Unit | None:
    r"""Of what stands after a number, in `normal.expression`'s spelling. A Unit without powers for
    nothing, or for "units"; None when it is no unit: `x`, `\pi`, `or 5`.
    """
    marked = "\\text" in text
    if upright := re.fullmatch(r"\s*\\text\s*\{\s*([NJWCVK])\s*\}\s*", text):
        text = UPRIGHT[upright[1]]
    text = (
        MARK.sub(r" \1 ", FRACTION.sub(r"\1/\2", text)).replace("^\\circ", "°").replace("\\$", "$")
    )
    text = re.sub(r"\^\s*\{\s*(-?\d)\s*\}", r"^\1", text)
    text = re.sub(r"\s*([/^°])\s*", r"\1", " ".join(text.casefold().split())).strip(" .")
    text = re.sub(r"°\s*(?=celsius|centigrade)", "°c ", text).replace("degrees celsius", "°c")
    text = text.replace("degrees fahrenheit", "°f")
    plain = " ".join(_singular(word) for word in text.split())
    plain = re.sub(r"(?:^| )per ", "/", SHORT.get(plain, plain)).replace("/ ", "/")
    if plain in NO_UNIT:
        return Unit(frozenset())
    if NOT_A_UNIT.match(plain) and not (marked and len(plain) > 1 and plain not in ("or", "and")):
        return None
    if re.search(r"[\\{}=<>+*(),\d]", re.sub(r"\^-?\d", "", plain)):
        return None
    for phrase, name in PHRASES.items():
        plain = plain.replace(phrase, name)
    for name, meanings in MEANINGS.items():
        found = re.search(rf"(?<![\w'\"]){re.escape(name)}(?![\w'\"])", plain)
        if found:
            before, after = plain[: found.start()], plain[found.end() :]
            first, *others = (_compound(before + other + after) for other in meanings)
            if first:
                return replace(first, or_else=tuple(filter(None, others)))
    return _compound(plain) or Unit(frozenset({(plain, 1)}))


def _compound(text: str) -> Unit | None:
    """Of known units only; words after a known one say of what, or how: `5 m long`."""
    powers: Counter[str] = Counter()
    size, known = Fraction(1), False
    for index, side in enumerate(text.split("/")):
        sign, times, after = (1, 1, None) if index == 0 else (-1, 1, None)
        for word in side.split():
            if word in ("square", "sq", "cubic", "cu"):
                times = 2 if word.startswith("sq") else 3
                continue
            if word in ("squared", "cubed") and after:
                dimension, value = after
                more = sign * (1 if word == "squared" else 2)
                powers[dimension] += more
                size *= value**more
                continue
            name, _, power = word.partition("^")
            if name not in UNITS:
                if known and not power and name.isalpha():
                    break
                return None
            dimension, value = UNITS[name]
            number = sign * times * (int(power) if power else 1)
            if dimension == "volume":
                dimension, number_of = "length", 3 * number
            else:
                number_of = number
            powers[dimension] += number_of
            size *= value**number
            known, after, times = True, (dimension, value), 1
    return Unit(frozenset((n, p) for n, p in powers.items() if p), size) if known else None


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and word.isalpha() else word
