"""Prompts out of rows, as chat messages with an id."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from axolotl_distill.config.generate import PromptsArgs
from axolotl_distill.disk.rows import Line
from axolotl_distill.errors import ConfigError
from axolotl_distill.generate.sources import Source, open_source
from axolotl_distill.trajectories.messages import (
    as_calls,
    as_tools,
    calls_of,
    message_fault,
    text_of,
)
from axolotl_distill.trajectories.plain import plain, whole, without_nulls
from axolotl_distill.trajectories.row import Row

Messages = list[Row]
COLUMNS = ("messages", "prompt", "question", "instruction")


@dataclass(frozen=True, slots=True)
class Prompt:
    """id: a hash of the messages and tools, and the occurrence ("…-2" … ) where they were there
    before. meta: the row's other columns, as plain JSON. tools: what the teacher may call."""

    id: str
    messages: Messages
    meta: Row
    tools: list[Row] | None = None


class Aside(NamedTuple):
    """A row that cannot be asked, or that is asked otherwise than it was written, and why."""

    source: str
    number: int
    reason: str
    row: Any
    asked: bool = False


def refuse(aside: Aside) -> None:
    """Raises ConfigError for a row that cannot be asked."""
    if not aside.asked:
        raise ConfigError(f"{aside.source}, row {aside.number}: {aside.reason}")


def read_prompts(
    sources: list[PromptsArgs],
    system: str | None = None,
    limit: int | None = None,
    tools: list[Row] | None = None,
    aside: Callable[[Aside], None] = refuse,
) -> list[Prompt]:
    """The prompts of all sources in order.

    A prompt is asked as it will be kept: what `axolotl distill filter` could not take is found
    here. A row's columns `system` and `tools` go with the prompt; `system` and `tools` are for rows
    that have none.

    limit  keeps the first so many of all
    aside  is told of a row that holds no prompt, and of one that has to be changed; by default the
           first of these is a ConfigError that names the row

    Raises ConfigError for a file that is not there or cannot be read.
    """
    return list(islice(_prompts(sources, system, tools, aside), limit))


def with_examples(messages: Messages, examples: Messages) -> Messages:
    """What the teacher is asked: the examples stand before the prompt, after its system message."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    return [*system, *examples, *messages[len(system) :]]


def _prompts(
    sources: list[PromptsArgs],
    system: str | None,
    tools: list[Row] | None,
    aside: Callable[[Aside], None],
) -> Iterator[Prompt]:
    seen: Counter[str] = Counter()
    for args in sources:
        source = open_source(args)
        for number, row in enumerate(islice(source.rows, args.limit), 1):
            say = _Sayer(aside, args.path, number, row)
            try:
                messages, own_tools, meta = _read(row, args, source, say)
                messages = _with_system(messages, system)
            except (ValueError, RecursionError) as error:
                say(str(error), asked=False)
                continue
            offered = own_tools or tools
            asked = {"messages": messages, "tools": offered} if offered else messages
            text = json.dumps(asked, ensure_ascii=False, sort_keys=True)
            name = hashlib.sha256(text.encode()).hexdigest()[:16]
            seen[name] += 1
            again = f"-{seen[name]}" if seen[name] > 1 else ""
            yield Prompt(name + again, messages, meta, offered)


@dataclass
class _Sayer:
    """Tells of one row."""

    aside: Callable[[Aside], None]
    source: str
    number: int
    row: Any

    def __call__(self, reason: str, asked: bool = True) -> None:
        given = self.row.data.decode(errors="replace") if isinstance(self.row, Line) else self.row
        self.aside(Aside(self.source, self.number, reason, given, asked))


def _read(
    row: Any, args: PromptsArgs, source: Source, say: Callable[[str], None]
) -> tuple[Messages, list[Row] | None, Row]:
    """(what to ask, the tools offered, the columns that go with it). Raises ValueError."""
    if isinstance(row, Line):
        raise ValueError(f"line {row.number} is not a JSON object: {row.fault}")
    fixed = whole(row)
    if fixed != row:
        say("they hold half of a surrogate pair, which no request can carry: U+FFFD is sent")
    messages, meta = _split(fixed, args, source.is_arrow)
    tools = meta.pop("tools", None)
    tools = as_tools(without_nulls(tools) if source.is_arrow else tools)
    tools = plain(tools, "tools")
    system = meta.pop("system", None)
    if system is not None and not isinstance(system, str):
        raise ValueError(f"`system` is a {type(system).__name__}, not text; rename the column")
    if system and system.strip():
        others = [m["content"] for m in messages if m["role"] == "system"]
        if others and others != [system]:
            say("their messages and `system` differ in the system message: the messages' is sent")
        messages = _with_system(messages, system)
    return messages, tools, {name: plain(value, name) for name, value in meta.items()}


def _split(row: Row, args: PromptsArgs, is_arrow: bool) -> tuple[Messages, Row]:
    """(what to ask, the columns that go with it)."""
    named = args.messages or args.prompt
    column = named or next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None or row.get(column) is None:
        raise ValueError(
            f"there is no {f'`{column}`' if column else 'prompt'}; it has {', '.join(row)}. Name "
            f"the column with `prompt:` or `messages:` (default: the first of {', '.join(COLUMNS)})"
        )
    meta = {name: value for name, value in row.items() if name != column}
    asked = row[column]
    if isinstance(asked, str) and not asked.strip():
        raise ValueError(f"`{column}` is empty")
    if isinstance(asked, str):
        # Alpaca's layout: what the instruction is about is in a column of its own.
        about = meta.pop("input", None) if column == "instruction" else None
        return [{"role": "user", "content": f"{asked}\n\n{about}" if about else asked}], meta
    if not isinstance(asked, list):
        raise ValueError(f"`{column}` is a {type(asked).__name__}, not text or a list of messages")
    messages = [_message(message, column, is_arrow) for message in asked]
    while messages and messages[-1]["role"] == "assistant":
        # A finished chat: its answer is what the teacher is to write, and a reference for filters.
        answer = messages.pop()
        meta["original_answer"] = answer.get("content")
        if calls := calls_of(answer):
            meta["original_tool_calls"] = calls
    if not messages:
        raise ValueError(f"`{column}` has no message to answer")
    if not any(message["role"] != "system" for message in messages):
        raise ValueError(f"`{column}` has a system message only, and nothing to answer")
    return messages, meta


def _message(message: Any, column: str, is_arrow: bool) -> Row:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(
            f"`{column}` must be a list of messages {{role, content}}; one is {message!r:.200}"
        )
    # Arrow gives every message the keys of all, null where it has none.
    kept = {name: value for name, value in message.items() if value is not None}
    if is_arrow:
        kept = without_nulls(kept)
    if calls := kept.pop("tool_calls", None):
        kept["tool_calls"] = plain(as_calls(calls), "tool_calls")
    if "content" in kept:
        kept["content"] = text_of(kept["content"])
    elif not calls:
        raise ValueError(f"a message of `{column}` has no `content`: {message!r:.200}")
    if fault := message_fault(kept):
        raise ValueError(fault)
    return {name: plain(value, name) for name, value in kept.items()}


def _with_system(messages: Messages, system: str | None) -> Messages:
    if not system or any(message["role"] in ("system", "developer") for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]
