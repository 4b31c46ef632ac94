r"""What an answer says by `=`, brackets and \pm, where reading its values alone would lose it.

math-verify takes `2x=5` for 5, and (4, 3) for x=3, y=4. Here is what it is not asked.
"""

import re
from collections.abc import Callable

from axolotl_distill.filter.verify.extract import split

NAME = r"[A-Za-z](?:_(?:\w|\{\w+\}))?"
ASSIGNED = re.compile(rf"({NAME})\s*=\s*([^=<>]+)")
TOGETHER = re.compile(rf"\(\s*({NAME}(?:\s*,\s*{NAME})+)\s*\)\s*=\s*(\(.+\))")
AND = re.compile(r"\\text\s*\{\s*and\s*\}|(?<![A-Za-z])and(?![A-Za-z])")
OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])")
RELATION = re.compile(r"[<>=]|\\(?:le|leq|ge|geq|ne|neq|in|approx|equiv|sim)(?![A-Za-z])")
NOT_EQUAL = re.compile(r"\s*(?:[<>]|\\(?:le|leq|ge|geq|ne|neq|not)(?![A-Za-z]))")
# Sides of an equation that is still to be solved.
UNSOLVED = re.compile(
    r"-?\s*(?:\d+(?:\.\d+)?|\\frac\s*\{\d+\}\s*\{\d+\})\s*(?:\\cdot|\*)?\s*[A-Za-z]|-\s*[A-Za-z]"
    r"|(?:\d+\s*)?[A-Za-z]\s*(?:\^\s*\{?\s*\d+\s*\}?|!|/\s*\d+)"
    r"|(?:\d+\s*)?[A-Za-z]\s*[-+]\s*\d+|\d+\s*[-+]\s*\d*\s*[A-Za-z]"
    r"|\\frac\s*\{\s*\d*[A-Za-z]\s*\}\s*\{\s*\d+\s*\}|\\sqrt\s*(?:\{\s*[A-Za-z]\s*\}|\s[A-Za-z])"
)


def compare(answer: str, wanted: str, same: Callable[[str, str], bool]) -> bool | None:
    """The verdict where it hangs on what stands around the values; else None.

    same   compares two values
    """
    if NOT_EQUAL.match(answer) and not NOT_EQUAL.match(wanted):
        return False
    if r"\pi" in answer and r"\pi" in wanted and (r"^\circ" in answer) != (r"^\circ" in wanted):
        return False
    if (
        not RELATION.search(wanted)
        and answer.count("=") == 1
        and len(RELATION.findall(answer)) == 1
    ):
        left, right = (side.strip() for side in answer.split("="))
        if re.fullmatch(NAME, right) and re.match(r"[-+\d\\.]", left):
            return same(left, wanted)
        if UNSOLVED.fullmatch(left):
            return False
        if not re.search("[A-Za-z]", answer):
            return same(left, right) and same(right, wanted)
    ordered = _tuple(answer)
    if ordered and (OR.search(wanted) or r"\pm" in wanted) and _tuple(wanted) is None:
        return False
    told, asked = assigned(answer), assigned(wanted)
    if told and asked:
        return told.keys() == asked.keys() and all(same(told[name], asked[name]) for name in told)
    if asked and (values := ordered or split(answer)) and len(values) == len(asked):
        return _all_same(values, [asked[name] for name in sorted(asked)], same)
    if told and (elements := _tuple(wanted)):
        return _all_same([told[name] for name in sorted(told)], elements, same)
    if told and "_" not in wanted and len({name[0] for name in told}) == 1:
        return same(", ".join(told.values()), wanted)
    if (r"\pm" in answer) != (r"\pm" in wanted):
        return _both(answer, wanted, same)
    return None


def assigned(text: str) -> dict[str, str] | None:
    """{name: value} of `x=3, y=4` or `(x,y)=(3,4)`: two names at least, each once."""
    if together := TOGETHER.fullmatch(text):
        names, values = split(together[1]), _tuple(together[2]) or []
        return dict(zip(names, values, strict=True)) if len(names) == len(values) else None
    parts = split(AND.sub(",", text))
    pairs = [pair for part in parts if (pair := ASSIGNED.fullmatch(part))]
    named = {pair[1]: pair[2].strip() for pair in pairs}
    return named if len(named) == len(parts) >= 2 else None


def _tuple(text: str) -> list[str] | None:
    inner = re.fullmatch(r"\((.*)\)", text.strip())
    parts = split(inner[1]) if inner and _closed(inner[1]) else []
    return parts if len(parts) > 1 else None


def _closed(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return False
    return True


def _all_same(one: list[str], other: list[str], same: Callable[[str, str], bool]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def _both(answer: str, wanted: str, same: Callable[[str, str], bool]) -> bool | None:
    r"""With the \pm of one side written out, where it stands within a fraction or a root."""
    text = answer if r"\pm" in answer else wanted
    before, _, after = text.partition(r"\pm")
    if r"\pm" in after or before.count("{") == before.count("}"):
        return None
    both = f"{before}+{after}, {before}-{after}"
    return same(both, wanted) if text is answer else same(answer, both)
