"""The trajectories as the filter reads them: checked, split, with every field there."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from axolotl_distill.filter.source import as_trajectory, read_source
from axolotl_distill.filter.step import Candidate
from axolotl_distill.trajectories import Damage, split
from axolotl_distill.trajectories.messages import (
    as_calls,
    as_tools,
    calls_of,
    message_fault,
    text_of,
)
from axolotl_distill.trajectories.row import Row

DEFAULTS: dict[str, Any] = {
    "sample": 0,
    "tools": None,
    "reasoning_content": None,
    "thinking_form": None,
    "message": None,
    "finish_reason": None,
    "usage": None,
    "logprobs": None,
    "teacher": None,
    "meta": None,
    "fault": None,
    "given": None,
}


# What reading adds to a row.
READ = ("fault", "given")


@dataclass
class Trajectories:
    """Where the rows are, and which of them count.

    n      rows of a sample beyond it are left out: the generation was asked for fewer; None: all
    metas  the other columns of the prompts as they are now, by prompt_id, in place of those that a
           row was made with
    """

    path: Path
    n: int | None = None
    metas: Mapping[str, Row] = field(default_factory=dict)

    def rows(self) -> Iterator[Candidate]:
        """As `read_rows`, with the columns as they are now, and with the rows that do not count."""
        for row in read_rows(self.path):
            row["meta"] = self.metas.get(row["prompt_id"], row["meta"])
            if self.n is not None and row["sample"] >= self.n and not row["fault"]:
                row["fault"] = (f"beyond n = {self.n} of the generation", f"sample {row['sample']}")
            yield row

    def unknown(self, prompt_ids: Collection[str]) -> int:
        """Of these prompts, how many are not among those that are asked now."""
        return sum(prompt not in self.metas for prompt in prompt_ids) if self.metas else 0


def read_rows(path: str | Path) -> Iterator[Candidate]:
    """Every trajectory of a file or folder, in the order of `read_source`.

    Only messages and content must be there, and id and prompt_id beside them; a conversation that
    no `generate` wrote is turned into that. Thinking that stands in the content is split off it,
    and `given` has what was changed so. A line or a row that is no trajectory is to be put aside:
    its `fault` is (reason, detail), `given` all of it, its other fields are empty.

    Raises TrajectoryError for a path without trajectories, and for a file that cannot be read.
    """
    damaged: list[Damage] = []
    occurrences: Counter[str] = Counter()
    for where, row in read_source(path, damaged.append):
        yield from map(_unreadable, damaged)
        damaged.clear()
        try:
            yield _checked(as_trajectory(row, occurrences))
        except ValueError as error:
            yield _faulty(where, ("not a trajectory", f"{where} is not a trajectory: {error}"), row)
    yield from map(_unreadable, damaged)


def _unreadable(damage: Damage) -> Candidate:
    name = f"{damage.file.name}, line {damage.number}"
    reason = damage.reason.partition(":")[0]
    return _faulty(name, (reason, str(damage)), damage.line.decode(errors="backslashreplace"))


def _faulty(name: str, fault: tuple[str, str], given: Any) -> Candidate:
    """A row that stands for one that is none."""
    empty = {"id": name, "prompt_id": name, "messages": [], "content": "", "meta": {}}
    made = {**DEFAULTS, **empty, "thinking_form": "none", "fault": fault, "given": given}
    return cast(Candidate, made)


def _checked(row: Row) -> Candidate:
    """The row with all its fields, in their one form. Raises ValueError for one that is none."""
    for key in ("id", "prompt_id"):
        if not isinstance(row.get(key), str) or not row[key]:
            raise ValueError(f"`{key}` must be a string, and is {row.get(key)!r}")
    if "content" not in row:
        raise ValueError("`content` must be a string, and there is none")
    kinds = {"reasoning_content": str, "meta": dict, "message": dict, "thinking_form": str}
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind | None):
            wanted = "a mapping" if kind is dict else "a string or null"
            raise ValueError(f"`{key}` must be {wanted}, and is {row[key]!r:.200}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages` must be a list of messages, and is {messages!r:.200}")
    written, row = row, {**DEFAULTS, **row, "messages": [_message(m) for m in messages]}
    row["meta"] = row["meta"] or {}
    row["tools"] = as_tools(row["tools"])
    row["content"] = text_of(row["content"])
    row["fault"] = None
    calls_of(row["message"] or {})  # raises for calls that are none
    if not isinstance(row["sample"], int):
        raise ValueError(f"`sample` must be a number, and is {row['sample']!r:.200}")
    if not row["thinking_form"]:
        thinking, answer, form = split(row["content"], row["reasoning_content"])
        row |= {"reasoning_content": thinking, "content": answer, "thinking_form": form}
    row["given"] = {key: value for key, value in written.items() if value != row[key]}
    return cast(Candidate, row)


def as_written(row: Candidate) -> Any:
    """The row as it is in its file, with what steps added to it; a damaged line as text."""
    if row["fault"] and row["messages"] == []:
        return row["given"]
    return {k: v for k, v in {**row, **(row["given"] or {})}.items() if k not in READ}


def _message(message: Any) -> Row:
    if isinstance(message, dict) and isinstance(message.get("content"), list):
        message = {**message, "content": text_of(message["content"])}
    if fault := message_fault(message):
        raise ValueError(fault)
    if message.get("tool_calls"):
        return {**message, "tool_calls": as_calls(message["tool_calls"])}
    return message
