"""Answers to questions of multiple choice: the letter, however it is dressed."""

import re

DRESS = re.compile(r"\\(?:text|math)(?:bf|it|rm)?\s*\{|[{}*_`$]")
# "(C)", "C.", "C: Paris", "C"; not "C_1", "C + 1", "A, B", "A big one".
CHOICE = re.compile(
    r"(?:option|choice|answer)?\s*(?:[(\[]\s*([A-Z])\s*[)\]]\s*[.:]?|([A-Z])\s*(?:[.:)](?!\w)|$))"
    r"(.*)",
    re.IGNORECASE | re.DOTALL,
)
OTHER = re.compile(
    r"[(\[]\s*[A-Z]\s*[)\]]|(?<![\w\\'])[B-HJ-Z](?![\w'])|(?<!\w)A(?=\s*(?:[.:),]|$))"
)
IN_PROSE = re.compile(
    r"(?:\b(?i:answer|option|choice)\b|答案|选项|選項|选择)\W{0,8}(?:(?i:is|are|be)|是|为|為)?\W{0,8}"
    r"(?i:option|choice)?\W{0,4}\b([A-Z])\b"
    r"(?!\s*[-+*/^=_,]|'\w|\s+(?i:or|and)\s+\(?[A-Z]\b|\s+(?!is\b|as\b|because\b|since\b)[a-z])"
    r"|\b([A-Z])\b\W{0,4}(?i:is\s+(?:the\s+)?(?:correct|right)|is the answer)"
)


def letter(text: str) -> str | None:
    """The one choice that a marked answer names, as a capital; None when it is no such answer."""
    plain = DRESS.sub("", text).strip(" .\n")
    match = CHOICE.fullmatch(plain)
    if match is None:
        return None
    rest = match[3].strip(" .\n")
    bare = match[2] is not None and not rest
    if rest and OTHER.search(rest):
        return None
    # Alone and small, a letter is a variable as well.
    return None if bare and match[2].islower() else (match[1] or match[2]).upper()


def is_choice(reference: str) -> bool:
    """Whether a reference reads as a choice: `C`, `(C)`, `(c)`, `C. Paris`, `\\text{C}`."""
    return letter(reference) is not None


def in_prose(text: str) -> str | None:
    """The choice that a text names last, on a line of its own or beside a word for it."""
    found = None
    for match in IN_PROSE.finditer(DRESS.sub("", text)):
        found = (match[1] or match[2]).upper()
    if found:
        return found
    lines = [line for line in text.splitlines() if line.strip()]
    return letter(lines[-1]) if lines else None
