"""Finds the program in an answer that is written in Markdown."""

import ast
import re

LANGUAGES = {"python", "py", "python3", "py3"}
# A fence may stand in a list, in a quotation, or after a few words.
FENCE = re.compile(r"([ \t>]*)(`{3,}|~{3,})([^`]*)$")
LATE = re.compile(r"()[^`]*\S[ \t]*(`{3,})[ \t]*((?i:python3?|py))[ \t]*$")
ENDS_TRIED = 4  # of a block with fences in it


def last_block(answer: str) -> str | None:
    """The last fenced block marked as Python, else the last one without a mark; of an answer with
    no fence at all the whole, where that is a program.

    A block ends at a fence like its own, no more than three columns deeper; a last one that is
    never closed ends with the answer. Lines end with line feeds only: Python's strings may hold
    the other characters that end lines.
    """
    lines = answer.replace("\r\n", "\n").split("\n")
    blocks: dict[bool, str] = {}
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at]) or LATE.match(lines[at])
        at += 1
        if opening is None:
            continue
        code, at = _block(lines, at, len(opening[1].expandtabs(4)), opening[2])
        word = re.search(r"[\w+#-]+", opening[3])
        language = word[0].lower() if word else ""
        if language in LANGUAGES or not language:
            blocks[bool(language)] = code
    if not blocks and not any(map(FENCE.match, lines)) and _is_program(answer):
        return answer
    return blocks.get(True, blocks.get(False))


def _block(lines: list[str], start: int, indent: int, fence: str) -> tuple[str, int]:
    """A block's code and the line after it."""
    closing = re.compile(rf"[ \t>]{{0,{indent + 3}}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    ends = [n for n in range(start, len(lines)) if closing.match(lines[n])][:ENDS_TRIED]
    ends = ends or [len(lines)]
    codes = [_code(lines[start:end], indent) for end in ends]
    for code, end in zip(codes, ends, strict=True):
        # A fence within a docstring ends nothing.
        if _parsed(code) is not None:
            return code, end + 1
    return codes[0], ends[0] + 1


def _code(lines: list[str], indent: int) -> str:
    return "\n".join(re.sub(rf"^[ \t>]{{0,{indent}}}", "", line) for line in lines)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_program(text: str) -> bool:
    """Whether it is Python that does or defines something: `Done` and `x + 1` do not."""
    tree = _parsed(text)
    return tree is not None and any(
        not isinstance(s, ast.Expr | ast.AnnAssign) or isinstance(s.value, ast.Call | ast.Await)
        for s in tree.body
    )
