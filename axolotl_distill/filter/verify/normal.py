r"""One way to write a mathematical text, whatever keyboard, font or language it came from.

Only spelling changes here: no value, and nothing that could be a variable.
"""

import re

ASCII = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
SPACES = dict.fromkeys(map(ord, "\t\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\u3000"), " ")
NOTHING = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
SIGNS = {
    **dict.fromkeys("−–‒﹣", "-"),
    **dict.fromkeys("’‘ʼ′", "'"),
    **{
        "、": ",",
        "。": ".",
        "〔": "(",
        "〕": ")",
        "【": "[",
        "】": "]",
        "⁄": "/",
        "∕": "/",
        "∶": ":",
    },
    **{"×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm "},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx "},
    **{"π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "∪": r"\cup ", "∩": r"\cap "},
    **{"∅": r"\emptyset ", "℃": r"^\circ C", "℉": r"^\circ F", "∈": r"\in "},
    **{"º": r"^\circ ", "˚": r"^\circ ", "″": "''", "\uffe1": "£", "\uffe5": "¥"},
    **{"θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "μ": r"\mu "},
}
FRACTIONS = {
    **{"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5)},
    **{"⅗": (3, 5), "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8)},
    **{"⅞": (7, 8)},
}
CHARACTERS = {
    **{code: SIGNS.get(ascii, ascii) for code, ascii in ASCII.items()},
    **SPACES,
    **NOTHING,
    **{ord(sign): text for sign, text in SIGNS.items()},
    **{ord(sign): rf"\frac{{{a}}}{{{b}}}" for sign, (a, b) in FRACTIONS.items()},
}
UPPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
LOWER = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# LaTeX that changes how a thing looks, and not what it is.
LOOKS = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|left|right|bigl?|bigr|Bigl?|Bigr|large|Large|"
    r"LARGE|small|normalsize|bf|rm|it|boldmath)(?![A-Za-z])|(?<!\\)\\!|(?<!\\)\$"
)
SPACE = re.compile(
    r"(?<!\\)\\[,;: >]|\\(?:quad|qquad|thinspace|enspace|hspace\{[^{}]*\})(?![A-Za-z])|~"
)
TEXT = re.compile(
    r"\\(?:textrm|textbf|textit|textsf|textnormal|textup|mathrm|mathbf|mathit|mathsf|mathtt|"
    r"boldsymbol|bm|mbox|hbox|operatorname)\s*\{"
)
NAMES = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:degree|degrees)(?![A-Za-z])"), r"^\\circ "),
    (
        re.compile(r"\^\s*\{\s*\\circ\s*\}|(?<=\d)\s*\^\s*(?:o(?![A-Za-z])|\{\s*o\s*\})"),
        r"^\\circ ",
    ),
    (re.compile(r"\\text\s*\{\s*(minus|negative)\s*\}\s*", re.IGNORECASE), r"\1 "),
    (re.compile(r"\\pounds(?![A-Za-z])|\\text\s*\{\s*£\s*\}"), "£"),
    (re.compile(r"\\text\s*\{\s*([€¥₹])\s*\}"), r"\1"),
    (re.compile(r"\+\s*/\s*-|(?:(?<=[=,])|\A)\s*\+\s*-|\bplus or minus\b"), r"\\pm "),
    (
        re.compile(r"\\(?:l|r)angle(?![A-Za-z])"),
        lambda match: "(" if match[0] == r"\langle" else ")",
    ),
    (re.compile(r"\\underline\s*(?=\{)|\\(?:textcolor|color)\s*\{[a-z]+\}\s*(?=\{)"), ""),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\leqslant(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\geqslant(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\colon(?![A-Za-z])|\{\s*:\s*\}"), ":"),
    (re.compile(r"\s*\{\s*,\s*\}\s*"), ","),
    (re.compile(r"√\s*(\d+|[A-Za-z])"), r"\\sqrt{\1}"),
    (re.compile(r"√\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
)
# Not between two operands, where it subtracts.
MINUS = re.compile(
    r"(?<![\d)\]}%] )(?<!\b[A-Za-z] )\b(?:minus|negative) "
    r"(?=(?:\\?\$|[€£¥]|USD|EUR|GBP|CNY|RMB|JPY|INR)? ?\.?\d)",
    re.IGNORECASE,
)
BOTH = re.compile(r"(?<=[^\s,])\s*(?:和|或|及|以及|或者)\s*(?=[^\s,])")
# ]0, 1[ is (0, 1).
FRENCH = re.compile(r"([\[\]])([^\[\]()]+[,;][^\[\]()]+)([\[\]])")
# {x | x > 3}
BUILT = re.compile(
    r"\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?)?\s*(?:\\mid|\\vert|\||:)\s*([^{}|]+?)\s*\\\}"
)
EVERYTHING = re.compile(
    r"(?:\\text\s*\{)?\s*(?:the set of )?all real(?:s| numbers)(?: x)?\s*\}?", re.IGNORECASE
)
# Names of functions, which are no words, and the words between two formulas.
NO_WORD = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "exp",
    "sqrt",
    "max",
    "min",
    "mod",
    "and",
}
NO_WORD |= {"gcd", "lcm", "arcsin", "arccos", "arctan", "infinity", "infty", "inf", "det", "base"}


def normal(text: str) -> str:
    """Of a text on its own or an expression: Unicode signs as LaTeX or ASCII, plain spaces."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda m: "^{" + m[0].translate(UPPER) + "}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(LOWER) + "}", text)
    return text.translate(CHARACTERS)


def expression(text: str) -> str:
    r"""Of an expression: `normal`, every kind of text as \text, nothing that only changes looks."""
    text = SPACE.sub(" ", normal(text))
    text = re.sub(r"\bUS\s?\\?\$", r"\\$", text)
    if len(re.findall(r"(?<!\\)\$", text)) % 2:
        text = re.sub(r"(?<!\\)\$", r"\\$", text)  # a currency
    text = LOOKS.sub("", TEXT.sub(r"\\text{", re.sub(r"\\text\s*\{\s*\\?\$\s*\}", r"\\$", text)))
    for pattern, name in NAMES:
        text = pattern.sub(name, text)
    text = FRENCH.sub(_brackets, BOTH.sub(", ", text))
    return re.sub(r"[ \t]+", " ", text).strip()


def signed(text: str) -> str:
    """A number's sign in words as a sign: for what looks for digits."""
    return MINUS.sub("-", text)


def _brackets(match: re.Match[str]) -> str:
    opening, inside, closing = match.groups()
    return f"{opening.replace(']', '(')}{inside}{closing.replace('[', ')')}"


def condition(text: str) -> str:
    """Of a set: the condition on its elements; "all real numbers" as a set."""
    if built := BUILT.fullmatch(text):
        return built[1]
    return r"\mathbb{R}" if EVERYTHING.fullmatch(text) else text


def sentence(text: str) -> str | None:
    """A text with words in it that no formula has, in one spelling; None without any."""
    plain = re.sub(r"\\[A-Za-z]+\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = re.findall(r"(?<![A-Za-z])[A-Za-z]{3,}", plain)
    if not any(word.casefold() not in NO_WORD for word in words):
        return None
    return " ".join(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).casefold().split()).strip(" .")


def spaced(text: str) -> str:
    """Prose of a language without spaces, with spaces around what is no part of it."""
    text = re.sub(rf"(?<=[{IDEOGRAPH}])(?=[^\s{IDEOGRAPH}])", " ", text)
    return re.sub(rf"(?<=[^\s{IDEOGRAPH}])(?=[{IDEOGRAPH}])", " ", text)


def words(text: str) -> str | None:
    r"""The words of a text that is nothing else, in lower case; None for anything else.

    A text in \text, or words of three letters and more: `xy` may be a product.
    """
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    plain = " ".join(plain.strip(" .,;:!?\"'*_`").split())
    if not re.fullmatch(r"[^\W\d_]+(?:[ '’./-]+[^\W\d_]+)*", plain):
        return None
    longest = max(map(len, re.split(r"[ '’./-]+", plain)))
    if plain.casefold() == "no":
        return "no"
    return plain.casefold() if longest > 2 or (plain != text.strip() and longest > 1) else None
