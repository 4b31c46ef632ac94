"""Text from elsewhere, made harmless: secrets taken out, nothing left that a page would obey."""

import html
import re
from typing import Any

SECRETS = (
    # user:password@ of an address
    (re.compile(r"(?<=://)[^/\s@]+@"), ""),
    # the value of a key in an address or a header
    (
        re.compile(
            r"(?i)((?:api[_-]?key|access[_-]?key|secret|token|passw(?:or)?d|signature|sig)"
            r"\s*[=:]\s*|bearer\s+)[^\s&,;]{4,}"
        ),
        r"\1…",
    ),
    # what keys of well-known services look like
    (
        re.compile(
            r"\b(?:sk-[-_A-Za-z0-9]{20,}|hf_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}"
            r"|github_pat_\w{20,}|glpat-[-\w]{16,}|xox[abp]-[-\w]{10,}|AKIA[0-9A-Z]{16}"
            r"|AIza[-\w]{30,})"
        ),
        "…",
    ),
)


def redacted(value: Any) -> Any:
    """`value` with passwords and keys taken out of every text in it."""
    if isinstance(value, dict):
        return {key: redacted(part) for key, part in value.items()}
    if isinstance(value, list):
        return [redacted(part) for part in value]
    if isinstance(value, str):
        for secret, instead in SECRETS:
            value = secret.sub(instead, value)
    return value


def one_line(text: object) -> str:
    """Text as one line of visible characters: no line break, control or direction mark."""
    shown = "".join(char if char.isprintable() else " " for char in str(text))
    return " ".join(shown.split())


def markdown(text: object) -> str:
    """Text as one line of Markdown that shows it: no markup, HTML or link of its own, no secret."""
    escaped = html.escape(one_line(redacted(str(text))), quote=False)
    return re.sub(r"([\\`*_{}\[\]#!|~$])", r"\\\1", escaped).replace("://", "&#58;//")
