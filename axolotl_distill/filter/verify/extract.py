"""Finds the final answer in what a model wrote. Linear in its length: texts may be hostile."""

import re

from axolotl_distill.filter.verify.normal import signed

# A number with what may stand right at it: sign, currency, thousands separators, exponent, the
# lower part of a fraction, percent. Not the 2 of m2, and not -5 in 12-5.
NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-−+])?[$€£¥]?(?<![A-Za-z_])"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s?/\s?\d+)?\s?%?"
)
BOX, BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{"), re.compile(r"\\.|[{}]", re.DOTALL)
MARKUP = " \t\r\n*_`#>:"


def candidates(text: str, how: str) -> list[str]:
    """What could be the final answer, in order of writing; the last one counts.

    `how` is one of recipe.verify's ways. Empty when it finds nothing.
    """
    way, _, what = how.partition(":")
    what = what.strip().strip("\"'")
    match way:
        case "whole":
            found = [text]
        case "boxed":
            found = boxed(text)
        case "tag":
            found = _tagged(text, what)
        case "after":
            found = _after(text, what)
        case "last_number":
            found = NUMBER.findall(signed(text))
        case "last_line":
            found = [line.strip(MARKUP) for line in text.splitlines() if line.strip(MARKUP)][-1:]
        case _:
            for way in ("tag:answer", "boxed", "after:answer:", "after:answer is", "last_line"):
                if found := candidates(text, way):
                    break
    return [one.strip() for one in found if one.strip()]


def parts(found: list[str], count: int) -> list[str]:
    """The `count` parts of an answer: the last ones found, or one that lists them by commas."""
    if count > 1 and len(found) < count:
        listed = split(found[-1])
        if len(listed) == count:
            return listed
    return found[-count:]


def boxed(text: str) -> list[str]:
    r"""What is in each outermost \boxed{…} or \fbox{…}; one that is never closed does not count."""
    found, position = [], 0
    for opening in BOX.finditer(text):
        if opening.start() < position:
            continue
        depth = 1
        for brace in BRACE.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if not depth:
                position = brace.end()
                found.append(text[opening.end() : brace.start()])
                break
        else:
            break
    return found


def _tagged(text: str, name: str) -> list[str]:
    opening, closing = f"<{name}>", f"</{name}>"
    pieces = text.split(opening)[1:]
    return [piece.partition(closing)[0] for piece in pieces if closing in piece]


def _after(text: str, what: str) -> list[str]:
    """The rest of the line, or the next line that is not empty, after each `what` in any case."""
    found = []
    for match in re.finditer(re.escape(what), text, re.IGNORECASE):
        rest = text[match.end() : match.end() + 2000]
        line = next((line for line in rest.splitlines() if line.strip(MARKUP)), "")
        found.append(line.strip(MARKUP))
    return found


def split(text: str) -> list[str]:
    """At the commas and semicolons outside of brackets."""
    pieces, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    return [piece.strip() for piece in [*pieces, text[start:]]]
