"""Answers to questions of multiple choice: the letter, however it is dressed."""

import re

DRESS = re.compile(r"\\(?:text|math)(?:bf|it|rm)?\s*\{|[{}*_`$]")
# "(C)", "C.", "C: Paris", "C"; not "C_1", "C + 1", "A, B", "A big one".
CHOICE = re.compile(
    r"(?:option|choice|answer|[选選]项?)?\s*(?:[(\[]\s*([A-Z])\s*[)\]]\s*[.:]?|([A-Z])\s*(?:[.:)](?!\w)|$))"
    r"(.*)",
    re.IGNORECASE | re.DOTALL,
)
OTHER = re.compile(
    r"[(\[]\s*[A-Z]\s*[)\]]|(?<![\w\\'])[B-HJ-Z](?![\w'])|(?<!\w)A(?=\s*(?:[.:),]|$))"
)

# "B", "(b)", "[B]". A small one without brackets counts only where a sentence ends; a capital not
# where a formula goes on, nor before most words: A is an article then, and T a kind of cell.
LETTER = (
    r"([(\[]\s*[A-Za-z]\s*[)\]]"
    r"|(?<![\w\\'’(\[])[A-Z](?![\w'’])(?!\s*[-+*/^=_<>])"
    r"(?!\s+(?!(?:is|as|because|since|which|for|due|given|over|rather|not|but|and|or|instead|with|"
    r"ist|est|es|da|weil|car|oder|ou|und|et|porque|o|y)\b)[a-z])"
    r"|(?<![\w\\'’(\[])[a-z](?=\s*(?:[.!](?!\w)|$|\n)))"
)
NOUN = (
    r"(?:(?:the|la|die|l['’])\s*)?(?:(?:answer|option|choice|letter|antwort|opción|opzione)\s+|"
    r"选项|選項)?"
)
CLAIMS = [
    re.compile(pattern.replace("NOUN", NOUN).replace("LETTER", f"(?-i:{LETTER})"), re.IGNORECASE)
    for pattern in (
        # The correct answer is B. La bonne réponse est (B). 答案：B
        r"\b(?:answer|option|choice|antwort|lösung|réponse|respuesta|risposta|resposta)"
        r"(?:\s+(?:correcta?|correcte|corretta))?"
        r"(?:\W{0,3}[:=]\W{0,4}|\s+(?:is|must be|would be|should be|ist|lautet|est|es|è|é)"
        r"(?:\s+(?:clearly|definitely|therefore|thus|probably|most likely))?\W{1,4})"
        r"NOUN\W{0,2}LETTER",
        r"(?:(?:答案|正解|答え|정답|답)\W{0,2}(?:应该|應該)?(?:是|为|為|选|選|は|은|는|:)?"
        r"|(?:选项|選項)\W{0,2}(?:是|为|為|:))\W{0,4}NOUNLETTER",
        # I'd go with B. So choose B. 故选B
        r"(?:(?:\bI|\bwe|\blet['’]?s|\bje|\bich)(?:['’](?:ll|d|m))?\s+(?:(?:would|will|shall|must|"
        r"should|am|therefore|thus|still|finally)\s+){0,2}"
        r"|(?:^|[.,;:!]\s|\n)\s*(?:(?:so|therefore|thus|hence),?\s+)?)"
        r"(?:choose|pick|select|go(?:ing)? (?:with|for)|opt for|settle (?:on|for)|choisis|wähle|"
        r"nehme)"
        r"\W{1,4}NOUN\W{0,2}LETTER",
        r"(?<!不)(?<!不能)[选選](?:择|擇)?项?[\s:]*LETTER",
        # B is correct. B正确
        r"LETTER\W{0,4}(?:is|ist|est|es)\s+(?:(?:clearly|therefore|the|la|die)\s+)?"
        r"(?:correcte?a?|right|best|true|answer|richtig|korrekt|bonne)\b",
        r"LETTER\s*项?\s*(?:是)?(?:正确|正確|对的|對的)",
        # So it's B.
        r"(?:\b(?:it['’]?s|it is|so|thus|therefore|hence)|所以|因此|故)[,:]?\s*"
        r"NOUNLETTER(?=[\s.!]*(?:\n|$))",
    )
]
HEDGE = re.compile(
    r"\s*(?:[,/&、]|,?\s*(?:or|and|oder|ou|und|et|或|或者|和|及|o|y))\s*(?:(?:also|maybe|possibly|perhaps|even)\s+)?"
    rf"(?:{NOUN})\W?(?-i:[A-H](?![\w'’])|[(\[]\s*[A-Za-z]\s*[)\]])",
    re.IGNORECASE,
)
# Before a claim, in its sentence: it is none then.
UNLESS = re.compile(
    r"\b(?:if|unless|whether|suppose|assuming|either|neither|not|never|cannot|say|think|thought|"
    r"claims?|wenn|falls|si|nicht)\b|n['’]t\b|如果|若|假设|不是|不能|不",
    re.IGNORECASE,
)
WRONG = re.compile(
    r"\s*(?:(?:is|was|ist|est|es)\s+(?:not|in\w+|wrong|false|falsch|fausse?)\b|项?是?(?:错|不))",
    re.IGNORECASE,
)
# After the last claim: it is taken back, in favour of another letter.
BACK = re.compile(
    r"\b(?:wait|actually|no,|correction|however|but|instead|rather|on second thought)|不对|但|更正",
    re.IGNORECASE,
)
ANOTHER = re.compile(
    r"(?<![\w\\'’])([B-HJ-Z])(?![\w'’])|(?<!\w)(A)(?=\s*[.:),])|[(\[]\s*([A-Z])\s*[)\]]"
)
ALONE = re.compile(r"[\s>#-]*(?i:option|choice)?\s*(?:[(\[]\s*[A-Za-z]\s*[)\]]|[A-Z])[\s.]*")


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
    """The choice that a text settles on: what it says last, in a sentence or on a line of its own.

    None where that leaves two open, or is taken back.
    """
    plain = DRESS.sub("", text)
    lines = [line for line in plain.splitlines() if line.strip()]
    if lines and ALONE.fullmatch(lines[-1].strip()):
        return letter(lines[-1])
    last = max(
        (match for claim in CLAIMS for match in claim.finditer(plain) if _is_claim(plain, match)),
        key=lambda match: match.end(1),
        default=None,
    )
    if last is None:
        return letter(lines[-1]) if lines else None
    named, rest = last[1].strip("()[] \n").upper(), plain[last.end(1) :]
    others = {found for match in ANOTHER.finditer(rest) for found in match.groups() if found}
    taken_back = BACK.search(rest) and others - {named}
    return None if HEDGE.match(rest) or taken_back else named


def _is_claim(text: str, match: re.Match[str]) -> bool:
    """Whether nothing in its sentence makes it a condition, a question or a denial."""
    before = re.split(r"[.!?\n。，,;:]", text[max(0, match.start() - 100) : match.start(1)])[-1]
    after = re.split(r"[.!?\n。]", text[match.end(1) : match.end(1) + 100], maxsplit=1)[0]
    asked = text[match.end(1) + len(after) :][:1] in ("?", "？")
    return not (asked or WRONG.match(after) or UNLESS.search(before) or UNLESS.search(match[0]))
