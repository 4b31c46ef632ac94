"""Foreign text made fit to show: what a model, a server or a file wrote, on a terminal, in a log
line or in a dataset card. Imports nothing heavy.

A model can write escape sequences that recolour a terminal or fill its clipboard, characters that
reverse the direction of a line, and HTML; a server can send back the key that it was sent. Every
message that quotes such text quotes it through `printable`, whatever holds an address or an
exception of a client through `redact`, and a card through `as_markdown`.
"""

import os
import re
import unicodedata
from typing import Any

HIDDEN = "[hidden]"
# What joins letters into one sign in Persian, in Indic scripts and in emoji.
JOINERS = "\u200c\u200d"
MOST = 500

_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?$", re.IGNORECASE)
# Values of fewer characters are words such as "none", and are everywhere.
_SECRET_CHARS = 8
_SECRETS = [
    # user:pass@ and token@ of a URL
    (re.compile(r"(?<=://)[^/?#\s'\"<>]*@"), ""),
    # ?api_key=… and key: …, "authorization": "…"
    (
        re.compile(
            r"((?:api[-_]?key|access[-_]?token|auth[-_]?token|password|passwd|authorization|"
            r"set-cookie|(?<=[?&])key|\b(?:token|secret|signature|sig|cookie))[\"']?\s*[=:]\s*[\"']?"
            r"(?:(?:bearer|basic)\s+)?)[^\s\"'&,;)}\]]{4,}",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    # Keys that say what they are: OpenAI and Anthropic, Hugging Face, Google, AWS, GitHub, …
    (
        re.compile(
            r"\b(?:(?:sk|pk|rk)-[A-Za-z0-9_*-]{8,}|hf_[A-Za-z0-9]{16,}|AIza[\w-]{20,}|"
            r"AKIA[A-Z0-9]{12,}|gh[pousr]_\w{16,}|gsk_\w{16,}|nvapi-[\w-]{16,}|xai-[\w-]{16,})"
        ),
        HIDDEN,
    ),
]


def printable(text: Any, most: int | None = MOST, lines: bool = False) -> str:
    """`text` as one line that shows what it holds and does nothing to a terminal.

    Control characters (ANSI escapes, line breaks, bell, …), what changes the direction of writing,
    invisible marks and halves of surrogate pairs come out as Python writes them (`\\x1b`); letters,
    signs and emoji of all languages stay.

    most   characters shown, then … and how many there are; None: all
    lines  line breaks stay, for a message of several lines
    """
    text = str(text)
    shown = text if most is None else text[:most]
    shown = "".join(char if _harmless(char, lines) else _escaped(char) for char in shown)
    return shown if most is None or len(text) <= most else f"{shown}… ({len(text):,} characters)"


def _harmless(char: str, lines: bool) -> bool:
    if char == "\n":
        return lines
    return char in JOINERS or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


def redact(text: Any) -> str:
    """`text` without secrets: user and password of a URL, keys and bearer tokens by their form,
    and the value of every environment variable that is called a key, token, secret or password.
    """
    text = str(text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SECRET_CHARS:
            text = text.replace(value, HIDDEN)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def without_secrets(value: Any) -> Any:
    """A JSON value with `redact` applied to every text in it; text under a key that is called a
    key, token, secret or password is hidden whole."""
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(inner, str) and _SECRET_NAME.search(str(key))
            else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def foreign(text: Any, most: int | None = MOST) -> str:
    """What a server or its client said, for a message: redacted, then printable."""
    return printable(redact(text), most)


def as_markdown(text: Any) -> str:
    """`text` as itself within a line or a table cell of Markdown: nothing in it is formatting, a
    link, HTML or a line break."""
    shown = printable(text, most=None, lines=True)
    shown = " ".join(shown.split("\n"))
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # With what makes a bare address a link on the hub.
    shown = re.sub(r"([\\`*_{}\[\]()#!|~@])", r"\\\1", shown)
    shown = re.sub(r"(?i)\b(www)\.", r"\1\\.", shown.replace("://", ":\\//"))
    # A number with a dot and a space, a dash or a plus sign begins a list.
    return re.sub(r"^(\s*)(\d+)([.)])(?=\s|$)|^(\s*)([-+=])", _no_list, shown)


def _no_list(found: re.Match[str]) -> str:
    if found[2] is not None:
        return f"{found[1]}{found[2]}\\{found[3]}"
    return f"{found[4]}\\{found[5]}"


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code in Markdown, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text, most=None, lines=True).rstrip()}\n{fence}"
