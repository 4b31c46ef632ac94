"""From a trajectory to chat messages: the prompt's, and what the teacher wrote as one."""

import json
from typing import Any

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.trajectories import OPEN, join_thinking, parts_of
from axolotl_distill.trajectories.messages import calls_of
from axolotl_distill.trajectories.row import Trajectory

Message = dict[str, Any]

# What a message of the dataset may have; what else the prompts' messages have is left out.
KEPT = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
CALLS = ("tool_calls", "function_call")


def assistant(row: Trajectory, reasoning: str) -> Message:
    """What the teacher wrote, as one message; a refusal is its answer where there is no other.

    reasoning  "tags": as <think>…</think> in the content. "field": in reasoning_content. "drop":
               left out

    Raises TrajectoryError for a call of a tool that no chat template could show.
    """
    said = row.get("message") or {}
    thinking, answer, form = parts_of(row)
    message = {"role": "assistant", "content": answer or said.get("refusal") or ""}
    if calls := calls_of(said):
        message["tool_calls"] = [_call(call, row["id"]) for call in calls]
    if thinking:
        message["reasoning_content"] = thinking
        return _in_form(message, reasoning, is_open=form == "unclosed")
    return message


def conversation(row: Trajectory, reasoning: str, system: str = "keep") -> list[Message]:
    """The prompt's messages and the assistant's, with what is KEPT of each."""
    kept = []
    for message in row["messages"]:
        if system == "keep" or message["role"] != "system":
            made = {key: message[key] for key in KEPT if message.get(key) is not None}
            made["content"] = message.get("content") or ""
            if calls := calls_of(message):
                made["tool_calls"] = [_call(call, row["id"]) for call in calls]
            kept.append(_in_form(made, reasoning))
    return [*kept, assistant(row, reasoning)]


def left_out(row: Trajectory) -> set[str]:
    """Keys of the row's messages that the dataset has no place for."""
    asked = {key for message in row["messages"] for key in message}
    return (asked | (row.get("message") or {}).keys()) - {*KEPT, *CALLS, "refusal"}


def _in_form(message: Message, reasoning: str, is_open: bool = False) -> Message:
    """The message with its `reasoning_content` where `reasoning` wants it."""
    thinking = message.get("reasoning_content")
    if not thinking or reasoning == "field":
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if reasoning == "drop":
        return rest
    if is_open:
        return {**rest, "content": f"{OPEN}\n{thinking}"}
    return {**rest, "content": join_thinking(thinking, rest["content"])}


def _call(call: Message, row_id: str) -> Message:
    """Raises TrajectoryError for arguments that are no JSON: no chat template could show them."""
    function = call["function"]
    try:
        json.loads(function["arguments"])
    except ValueError as error:
        raise TrajectoryError(
            f"Row {row_id} calls `{function['name']}` with arguments that are no JSON ({error}): "
            f"{function['arguments']:.200}. Most likely it was cut off."
        ) from None
    about = {"id": call["id"]} if call.get("id") else {}
    named = {"name": function["name"], "arguments": function["arguments"]}
    return {**about, "type": call["type"], "function": named}
