"""Times of day, dates and ratios: 9:05 pm is 21:05, 9:5 is 18:10, and no time."""

import re
from fractions import Fraction

from axolotl_distill.filter.verify.quantity import LARGEST, quantity

HALF = r"(?: ?(?:\\text\s*\{)? ?([ap])\.? ?m\.?)? ?\}?"
COLON = re.compile(rf"(\d+(?:\.\d+)?)((?: ?: ?\d+(?:\.\d+)?)+){HALF}", re.IGNORECASE)
HOUR = re.compile(rf"(\d\d?)( ?o'clock)?{HALF}", re.IGNORECASE)
NAMED = {"noon": 12, "12 noon": 12, "midnight": 0, "12 midnight": 0}
TO = re.compile(r"(\d+) (?:\\text\s*\{)? ?to ?\}? ?(\d+)")

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|"
    r"sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
DAY, YEAR = r"(?:the )?(?P<day>\d\d?)(?:st|nd|rd|th)?", r"(?P<year>\d{4})"
WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,? )?"
DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{WEEKDAY}{MONTH} {DAY}(?:,? {YEAR})?",
        rf"{WEEKDAY}{DAY}(?: of)? {MONTH}(?:,? {YEAR})?",
        rf"(?P<month>){MONTH.replace('month', 'name')},? {YEAR}",
        r"(?P<year>\d{4})([-/])(?P<month>\d\d)\2(?P<day>\d\d)",
        r"(?:(?P<year>\d{4}) ?年 ?)?(?P<month>\d\d?) ?月 ?(?P<day>\d\d?) ?[日号]",
    )
]

Clock = tuple[int, str]  # seconds since midnight; how they are told: am, pm, 24 or nothing


def same_moment(answer: str, wanted: str) -> bool | None:
    """The verdict where either is a date, a time of day or a ratio; None for anything else."""
    dates = date(answer), date(wanted)
    if any(dates):
        return dates[0] == dates[1]
    one, other = clock(answer), clock(wanted)
    if one is not None and other is not None:
        return _same_time(one, other)
    for time, text in ((one, wanted), (other, answer)):
        # "9 pm" is 9 to those who ask for the hour.
        if time is not None and time[1] in ("am", "pm") and re.fullmatch(r"\d\d?", text):
            return time[0] % 43200 == int(text) % 12 * 3600 and 1 <= int(text) <= 12
    pair, asked = ratio(answer), ratio(wanted)
    if pair is not None and asked is not None and other is None:
        return len(pair) == len(asked) and all(
            a * asked[0] == b * pair[0] for a, b in zip(pair, asked, strict=True)
        )
    if one is not None or other is not None or ":" in answer + wanted:
        found, text = (pair, wanted) if pair is not None else (asked, answer)
        is_pair = found and len(found) == 2 and other is None
        if found and is_pair and (plain := quantity(text, comma=False)):
            return plain.value == found[0] / found[1]
        return False if one or other or pair or asked else None
    return None


def date(text: str) -> tuple[int, int, int] | None:
    """(year, month, day) of a date that can be read in one way only; 0 for what it leaves out."""
    text = " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text[:100]).split()).strip(" .")
    for pattern in DATES:
        if match := pattern.fullmatch(text):
            found = match.groupdict()
            month = found["month"] or found["name"]
            number = int(month) if month.isdecimal() else MONTHS.index(month[:3].casefold()) + 1
            return int(found.get("year") or 0), number, int(found.get("day") or 0)
    return None


def clock(text: str) -> Clock | None:
    """A time of day: 9:05, 21:05:30, 9 pm, noon."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", text[:100])
    text = " ".join(text.split()).strip(" .")
    if text.casefold() in NAMED:
        return NAMED[text.casefold()] * 3600, "24"
    match, hour = COLON.fullmatch(text), HOUR.fullmatch(text)
    if match:
        parts = [match[1], *(part.strip() for part in match[2].split(":")[1:])]
        if len(parts) > 3 or not all(re.fullmatch(r"[0-5]\d", part) for part in parts[1:]):
            return None
        half = match[3]
    elif hour and (hour[2] or hour[3]):
        parts, half = [hour[1]], hour[3]
    else:
        return None
    if not re.fullmatch(r"\d\d?", parts[0]) or int(parts[0]) > (12 if half else 24):
        return None
    hours = int(parts[0])
    rest = sum(int(part) * size for part, size in zip(parts[1:], (60, 1), strict=False))
    if half:
        half = half.casefold()
        seconds = (hours % 12 + 12 * (half == "p")) * 3600 + rest
        return (seconds, f"{half}m") if hours else None
    told = "24" if hours > 12 or parts[0][0] == "0" else ""
    return hours * 3600 + rest, told


def _same_time(one: Clock, other: Clock) -> bool:
    """Who leaves out am and pm means either, if the other one says which."""
    if one[0] == other[0] or {one[1], other[1]} <= {"24", ""}:
        return one[0] == other[0]
    return "" in (one[1], other[1]) and one[0] % 43200 == other[0] % 43200


def ratio(text: str) -> list[Fraction] | None:
    """The numbers of 3:4, of 3 to 4; none of them zero, nor written as minutes are: 3:04."""
    text = text.strip(" .")
    match, to = COLON.fullmatch(text), TO.fullmatch(text)
    if to:
        parts = [to[1], to[2]]
    elif match is None or len(text) > LARGEST or match[3]:
        return None
    else:
        parts = [match[1], *(part.strip() for part in match[2].split(":")[1:])]
    if any(re.match(r"0\d", part) for part in parts):
        return None
    numbers = [Fraction(part) for part in parts]
    return numbers if all(numbers) else None
