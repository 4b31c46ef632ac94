"""gpt-oss's harmony format: one text of several messages, each in a channel.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>

`analysis` is thinking. `final` is the answer, and so is `commentary`, in which the model speaks to
the user between its thoughts. A message with a recipient (`to=functions.add`) is a call of a tool;
it stays in the answer as it was written.
"""

import re
from typing import NamedTuple

OPEN = "<|channel|>analysis<|message|>"
ENDS = r"<\|(?:end|return|call)\|>"
# The first message goes without `<|start|>assistant`, with which the prompt ends. A recipient may
# stand on either side of the channel; `<|constrain|>json` says what a call's text is.
HEADER = re.compile(
    r"(?:<\|start\|>assistant)?(?P<before>[^<]{0,200})<\|channel\|>"
    r"(?P<channel>analysis|commentary|final)(?P<after>[^<]{0,200}(?:<\|constrain\|>[^<]{0,80})?)"
    r"<\|message\|>"
)
# An ending that a text merely names has something else after it.
END = re.compile(rf"{ENDS}(?=\s*(?:<\|start\|>|\Z))|(?=<\|start\|>assistant)|\Z")
# A header that was cut off says nothing.
PIECE = re.compile(r"(?:<\|start\|>[^<]*)?(?:<\|channel\|>[^<]*)?(?:<\|constrain\|>[^<]*)?")


class Said(NamedTuple):
    """thinking: the texts of `analysis`. answer: all others. is_open: the text ends within the
    thinking."""

    thinking: list[str]
    answer: list[str]
    is_open: bool


def read(text: str) -> Said | None:
    """The messages of a text in this format; None for one that does not begin like it."""
    said = Said([], [], False)
    at = len(text) - len(text.lstrip())
    if HEADER.match(text, at) is None or not text.startswith(("<|", "to="), at):
        return None
    while header := HEADER.match(text, at):
        end = END.search(text, header.end())
        assert end is not None
        body = text[header.end() : end.start()].strip()
        if "to=" in f"{header['before']}{header['after']}":
            said.answer.append(text[at : end.end()].strip())
        elif header["channel"] == "analysis":
            said.thinking.append(body)
        else:
            said.answer.append(body)
        is_open = header["channel"] == "analysis" and not end[0] and end.end() == len(text)
        said = said._replace(is_open=is_open)
        at = end.end() + len(text[end.end() :]) - len(text[end.end() :].lstrip())
    if not PIECE.fullmatch(rest := text[at:].strip()):
        said.answer.append(rest)
    return said
