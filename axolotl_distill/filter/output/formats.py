"""From a trajectory to a row of the dataset."""

from collections.abc import Callable
from typing import Any

from axolotl_distill.errors import FilterError
from axolotl_distill.filter.rows import MESSAGE
from axolotl_distill.recipe.filter import FilterArgs
from axolotl_distill.trajectories import OPEN, join_thinking, split_thinking
from axolotl_distill.trajectories.journal import Row

Message = dict[str, str]


def assistant(row: Row, reasoning: str) -> Message:
    """What the teacher wrote, as one message.

    reasoning  "tags": as <think>…</think> in the content, to the letter where it came so. "field":
               in reasoning_content. "drop": left out
    """
    thinking, answer = split_thinking(row["content"], row["reasoning_content"])
    if reasoning == "drop":
        return {"role": "assistant", "content": answer}
    if reasoning == "field":
        message = {"role": "assistant", "content": answer}
        return {**message, "reasoning_content": thinking} if thinking else message
    if not row["reasoning_content"] and (thinking is None or OPEN in row["content"]):
        return {"role": "assistant", "content": row["content"]}
    return {"role": "assistant", "content": join_thinking(thinking, answer)}


def conversation(row: Row, reasoning: str, system: str = "keep") -> list[Message]:
    """The prompt's messages, role and content only, and the assistant's."""
    kept = [
        {key: message[key] for key in MESSAGE}
        for message in row["messages"]
        if system == "keep" or message["role"] != "system"
    ]
    return [*kept, assistant(row, reasoning)]


def formatter(args: FilterArgs) -> Callable[[Row], dict[str, Any]]:
    """A function from a trajectory to the columns of `args.format`, beside id, prompt_id, scores.

    It raises FilterError for a conversation that the format cannot hold.
    """
    make = {"messages": _messages, "alpaca": _alpaca, "prompt_completion": _prompt_completion}
    return lambda row: make[args.format](row, args)


def columns(args: FilterArgs) -> dict[str, Any]:
    """The pyarrow types of these columns."""
    import pyarrow as pa

    if args.format == "alpaca":
        system = ["system"] if args.system == "keep" else []
        return dict.fromkeys(["instruction", "input", "output", *system], pa.string())
    if args.format == "prompt_completion":
        return dict.fromkeys(["prompt", "completion"], pa.string())
    fields = ["role", "content", *(["reasoning_content"] if args.reasoning == "field" else [])]
    return {"messages": pa.list_(pa.struct([(name, pa.string()) for name in fields]))}


def _messages(row: Row, args: FilterArgs) -> dict[str, Any]:
    return {"messages": conversation(row, args.reasoning, args.system)}


def _alpaca(row: Row, args: FilterArgs) -> dict[str, Any]:
    *before, answer = conversation(row, args.reasoning, args.system)
    texts = {message["role"]: message["content"] for message in before}
    if len(texts) != len(before) or not {"user"} <= set(texts) <= {"system", "user"}:
        raise FilterError(
            f"Row {row['id']} has a prompt of several turns "
            f"({', '.join(message['role'] for message in before)}), and `format: alpaca` holds one "
            "instruction. Use `format: messages`."
        )
    made = {"instruction": texts["user"], "input": "", "output": answer["content"]}
    return {**made, "system": texts.get("system", "")} if args.system == "keep" else made


def _prompt_completion(row: Row, args: FilterArgs) -> dict[str, Any]:
    *before, answer = conversation(row, args.reasoning, args.system)
    if len(before) > 1 and any(message["role"] == "assistant" for message in before):
        raise FilterError(
            f"Row {row['id']} has a prompt of several turns, and `format: prompt_completion` "
            "holds one text. Use `format: messages`."
        )
    prompt = "\n\n".join(message["content"] for message in before)
    return {"prompt": prompt, "completion": answer["content"]}
