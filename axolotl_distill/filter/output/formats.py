"""From a trajectory to a row of the dataset."""

import json
from collections.abc import Callable, Collection
from typing import Any

from axolotl_distill.errors import FilterError, TrajectoryError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.conversation import KEPT, Message, conversation
from axolotl_distill.trajectories import join_thinking, parts_of, split_thinking
from axolotl_distill.trajectories.row import Trajectory


def formatter(args: FilterArgs) -> Callable[[Trajectory], dict[str, Any]]:
    """A function from a trajectory to the columns of `args.format`, beside id, prompt_id, scores.

    It raises FilterError for a conversation that the format cannot hold, and TrajectoryError for a
    row that would read otherwise in the dataset.
    """
    made = {"messages": _messages, "alpaca": _alpaca, "prompt_completion": _prompt_completion}

    def make(row: Trajectory) -> dict[str, Any]:
        if args.reasoning == "tags":
            _check_tags(row)
        return made[args.format](row, args)

    return make


def _check_tags(row: Trajectory) -> None:
    """Raises TrajectoryError where the thinking ends elsewhere for who reads it between tags."""
    thinking, answer, form = parts_of(row)
    if not thinking or form == "unclosed":
        return
    if split_thinking(join_thinking(thinking, answer)) != (thinking.strip(), answer.strip()):
        raise TrajectoryError(
            f"Row {row['id']} names tags of thinking within its thinking, so that a reader would "
            "end it there. Use `filter.reasoning: field`, which keeps both apart."
        )


def columns(args: FilterArgs, used: Collection[str] = ()) -> dict[str, Any]:
    """The pyarrow types of these columns; `used` are the keys (`keys_of`) that some row has."""
    import pyarrow as pa

    if args.format == "alpaca":
        system = ["system"] if args.system == "keep" else []
        return dict.fromkeys(["instruction", "input", "output", *system], pa.string())
    if args.format == "prompt_completion":
        return dict.fromkeys(["prompt", "completion"], pa.string())
    texts = {"role", "content"} | ({"reasoning_content"} if args.reasoning == "field" else set())
    fields: list[tuple[str, Any]] = [
        (key, pa.string()) for key in KEPT if key in texts | ({*used} - {"tool_calls"})
    ]
    if "tool_calls" in used:
        function = pa.struct([("name", pa.string()), ("arguments", pa.string())])
        call = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", function)])
        fields.append(("tool_calls", pa.list_(call)))
    tools = {"tools": pa.string()} if "tools" in used else {}
    return {"messages": pa.list_(pa.struct(fields)), **tools}


def keys_of(made: dict[str, Any]) -> set[str]:
    """Which keys a row of `format: messages` uses: those of its messages, and "tools"."""
    return {key for message in made.get("messages", ()) for key in message} | (
        {"tools"} & made.keys()
    )


def _messages(row: Trajectory, args: FilterArgs) -> dict[str, Any]:
    made: dict[str, Any] = {"messages": conversation(row, args.reasoning, args.system)}
    if row.get("tools"):
        # As text: typed columns would give every tool the parameters of all others.
        made["tools"] = json.dumps(row["tools"], ensure_ascii=False)
    return made


def _alpaca(row: Trajectory, args: FilterArgs) -> dict[str, Any]:
    *before, answer = _plain_text(row, args)
    texts = {message["role"]: message["content"] for message in before}
    if len(texts) != len(before) or not {"user"} <= set(texts) <= {"system", "user"}:
        raise FilterError(
            f"Row {row['id']} has a prompt of several turns "
            f"({', '.join(message['role'] for message in before)}), and `format: alpaca` holds one "
            "instruction. Use `format: messages`."
        )
    made = {"instruction": texts["user"], "input": "", "output": answer["content"]}
    return {**made, "system": texts.get("system", "")} if args.system == "keep" else made


def _prompt_completion(row: Trajectory, args: FilterArgs) -> dict[str, Any]:
    *before, answer = _plain_text(row, args)
    if len(before) > 1 and any(message["role"] == "assistant" for message in before):
        raise FilterError(
            f"Row {row['id']} has a prompt of several turns, and `format: prompt_completion` "
            "holds one text. Use `format: messages`."
        )
    prompt = "\n\n".join(message["content"] for message in before)
    return {"prompt": prompt, "completion": answer["content"]}


def _plain_text(row: Trajectory, args: FilterArgs) -> list[Message]:
    messages = conversation(row, args.reasoning, args.system)
    if row.get("tools") or any("tool_calls" in message for message in messages):
        raise FilterError(
            f"Row {row['id']} has tools or calls of tools, and `format: {args.format}` holds text "
            "only. Use `format: messages`."
        )
    return messages
