"""Where a model's thinking ends and its answer begins: decided once, at the start of the text.

Thinking stands first, between tags, or it does not stand in the text at all. Tags further on, in
code or in quotes, are part of what was written.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from axolotl_distill.trajectories import harmony

OPEN, CLOSE = "<think>", "</think>"

Form = Literal["apart", "tags", "closing tag", "unclosed", "none"]


class Tags(NamedTuple):
    """What stands around the thinking and, for some models, around the answer after it.

    alone  whether the closing tag alone tells thinking from answer, where a chat template wrote the
           opening one into the prompt
    """

    open: str
    close: str
    answer: tuple[str, str] | None = None
    alone: bool = True


# gpt-oss: several messages, which harmony.py tells apart.
HARMONY = Tags(harmony.OPEN, "<|end|>", ("<|channel|>final<|message|>", "<|return|>"), alone=False)
KNOWN = (
    Tags(OPEN, CLOSE),  # DeepSeek, Qwen, Nemotron, GLM, MiniMax, Phi and most others
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("[THINK]", "[/THINK]"),  # Magistral
    Tags("<seed:think>", "</seed:think>"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("<longcat_think>", "</longcat_think>"),
    Tags("◁think▷", "◁/think▷"),  # Kimi
    Tags(
        "<|begin_of_thought|>",
        "<|end_of_thought|>",
        ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ),
    Tags("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    HARMONY,
)

FENCED = re.compile(r"```.*?```", re.DOTALL)
INLINE = re.compile(r"`[^`\n]*`")
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "(": ")", "[": "]", "{": "}"}
SENTENCE_ENDS = ".!?:;。！？…)]}*\"'”"


class Parts(NamedTuple):
    """thinking is None where there is none; `form` says how it came."""

    thinking: str | None
    answer: str
    form: Form


def split(
    content: str,
    reasoning: str | None = None,
    *,
    tags: Sequence[Tags] = KNOWN,
    opened: bool | None = None,
) -> Parts:
    """Thinking, stripped, and answer of what a model wrote: `content` to the letter, from its first
    letter after the thinking on.

    reasoning  the thinking where a server gave it apart; `content` is the answer then
    tags       pairs that may stand around thinking at the start of the text
    opened     whether the chat template opens the thinking in the prompt. None: a closing tag that
               nothing opens, and that does not read like a word of a sentence, ends the thinking

    Within thinking, pairs of tags may be nested. "unclosed" is thinking that ends with the text:
    there is no answer.
    """
    if reasoning and reasoning.strip():
        return Parts(reasoning.strip(), _unrepeated(content, reasoning, tags), "apart")
    if HARMONY in tags:
        within = bool(opened) and "<|start|>" in content
        if said := harmony.read(f"{harmony.OPEN}{content}" if within else content):
            return _joined(said)
    start = len(content) - len(content.lstrip())
    for pair in tags:
        if _starts(content, pair.open, start):
            begin = start + len(pair.open)
            return _parts(content, begin, _close(content, begin, pair), pair, "tags")
    if opened is not False:
        for pair in tags:
            if pair.alone and (end := _lone_close(content, pair, bool(opened))):
                return _parts(content, 0, end, pair, "closing tag")
    if opened:
        return Parts(content.strip() or None, "", "unclosed")
    for pair in tags:
        if pair.answer and _starts(content, pair.answer[0], start):
            return Parts(None, _unwrapped(content.strip(), pair), "none")
    return Parts(None, content, "none")


def split_thinking(content: str, reasoning_content: str | None = None) -> tuple[str | None, str]:
    """(thinking or None, answer), both stripped; see `split`."""
    thinking, answer, _ = split(content, reasoning_content)
    return thinking, answer.strip()


def parts_of(row: Mapping[str, Any]) -> Parts:
    """Thinking and answer of a trajectory: as they are in the row where that was split already (it
    names its `thinking_form`), else split here."""
    content, reasoning = row["content"] or "", row.get("reasoning_content")
    if row.get("thinking_form"):
        return Parts(reasoning, content, row["thinking_form"])
    return split(content, reasoning)


def join_thinking(thinking: str | None, answer: str) -> str:
    """Both in one text, in the layout of DeepSeek-R1 and Qwen3."""
    return answer if not thinking else f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}"


def _starts(text: str, tag: str, at: int) -> bool:
    return text[at : at + len(tag)].casefold() == tag.casefold()


def _parts(text: str, begin: int, close: re.Match[str] | None, pair: Tags, form: Form) -> Parts:
    if close is None:
        return Parts(text[begin:].strip() or None, "", "unclosed")
    thinking = text[begin : close.start()].strip()
    answer = text[close.end() :].lstrip()
    return Parts(thinking or None, _unwrapped(answer, pair), form)


def _unwrapped(answer: str, pair: Tags) -> str:
    """Without the tags that some models put around the answer too."""
    if pair.answer and _starts(answer, pair.answer[0], 0):
        return answer[len(pair.answer[0]) :].rstrip().removesuffix(pair.answer[1]).strip()
    return answer


def _joined(said: harmony.Said) -> Parts:
    thinking, answer = ("\n\n".join(filter(None, texts)) for texts in (said.thinking, said.answer))
    if not thinking:
        return Parts(None, answer, "none")
    return Parts(thinking, answer, "unclosed" if said.is_open and not answer else "tags")


def _unrepeated(content: str, reasoning: str, tags: Sequence[Tags]) -> str:
    """Some gateways give the thinking apart and leave it in the content as well."""
    again = split(content, tags=tags, opened=False)
    return again.answer if again.thinking == reasoning.strip() else content


def _close(text: str, begin: int, pair: Tags) -> re.Match[str] | None:
    """The tag that closes what was opened before `begin`. Tags in code or quotes do not count; an
    odd fence may hide the right one, so fences count for nothing when nothing else is found."""
    for fences in (True, False):
        depth = 1
        for tag in _tags(text, begin, pair, fences):
            depth += 1 if _starts(tag[0], pair.open, 0) else -1
            if not depth:
                return tag
    # Text names the opening tag without closing it: the first closing tag on a line of its own.
    closes = [tag for tag in _tags(text, begin, pair, True) if _starts(tag[0], pair.close, 0)]
    alone = (tag for tag in closes if _own_line(text, tag))
    return next(alone, closes[-1] if closes else None)


def _lone_close(text: str, pair: Tags, surely: bool) -> re.Match[str] | None:
    """The closing tag of thinking that the prompt opened. Unless it is sure that there is some, a
    tag in the middle of a sentence is the text's own."""
    if surely:
        return _close(text, 0, pair)
    tag = next(_tags(text, 0, pair, True), None)
    if tag is None or not _starts(tag[0], pair.close, 0):
        return None
    left, right = text[: tag.start()], text[tag.end() :]
    before = left.rstrip(" \t")
    is_sentence_end = before.endswith(tuple(SENTENCE_ENDS)) and right[:1] in ("", "\n", "\r")
    is_word = left[-1:] in (" ", "\t") and not before.endswith("\n") and not is_sentence_end
    return None if is_word else tag


def _tags(text: str, begin: int, pair: Tags, fences: bool) -> Iterator[re.Match[str]]:
    """Opening and closing tags from `begin` on that are not quoted, nor in code."""
    either = re.compile(f"{re.escape(pair.open)}|{re.escape(pair.close)}", re.IGNORECASE)
    hidden = [found.span() for found in INLINE.finditer(text, begin)]
    if fences:
        hidden += [found.span() for found in FENCED.finditer(text, begin)]
    for tag in either.finditer(text, begin):
        before, after = text[max(begin, tag.start() - 1) : tag.start()], text[tag.end() :][:1]
        if after and QUOTES.get(before) == after:
            continue
        if not any(start < tag.start() and tag.end() < end for start, end in hidden):
            yield tag


def _own_line(text: str, tag: re.Match[str]) -> bool:
    left, right = text[: tag.start()].rstrip(" \t"), text[tag.end() :].lstrip(" \t")
    return left[-1:] in ("", "\n") and right[:1] in ("", "\n", "\r")
