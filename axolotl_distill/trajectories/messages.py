"""Chat messages as they are asked, kept and trained on: text, and calls of tools.

A message is {role, content, tool_calls?, tool_call_id?, name?, reasoning_content?}; `content` is
text, and may be missing beside `tool_calls`. A call is {id?, type: "function", function: {name,
arguments}}, the arguments as JSON text, which is OpenAI's form and needs no common columns.
"""

import json
from typing import Any

Message = dict[str, Any]

TEXT_KEYS = ("text", "content", "value")


def text_of(content: Any) -> str:
    """The text of a message's `content`: text itself, or parts {type: text, text} put together.

    Raises ValueError for parts of other kinds (images, audio, files), which have no place in text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"`content` is a {type(content).__name__}, not text: {content!r:.200}")
    return "".join(map(_part_text, content))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text", "input_text"):
        for key in TEXT_KEYS:
            if isinstance(part.get(key), str):
                return part[key]
    raise ValueError(f"`content` has a part that is not text: {part!r:.200}")


def message_fault(message: Any) -> str | None:
    """Why a message cannot be part of a dataset, or None."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return f"a message needs `role` and `content`, both text, and one is {message!r:.300}"
    if isinstance(message.get("content"), str) or (
        message.get("content") is None and (message.get("tool_calls") or message.get("refusal"))
    ):
        return None
    return (
        "a message needs `role` and `content`, both text (images have no place in the dataset; "
        f"only calls of tools need no content), and one is {message!r:.300}"
    )


def as_calls(calls: Any) -> list[Message]:
    """`tool_calls` in the one form; bare {name, arguments} and arguments as a mapping are put so.

    Raises ValueError for what is no list of calls.
    """
    if not isinstance(calls, list):
        raise ValueError(f"`tool_calls` is a {type(calls).__name__}, not a list: {calls!r:.200}")
    return [_as_call(call) for call in calls]


def _as_call(call: Any) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(
            "a call of `tool_calls` needs {type: function, function: {name, arguments}}, and one "
            f"is {call!r:.200}"
        )
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    about = {key: value for key, value in call.items() if key not in ("function", *function)}
    return {"type": "function", **about, "function": {**function, "arguments": arguments}}


def as_tools(tools: Any) -> list[Message] | None:
    """A row's `tools` as [{type: function, function: {name, …}}, …], from a list or its JSON text;
    None where there are none.

    Raises ValueError for anything else.
    """
    what = "`tools` must be a list of tools {type: function, function: {name, parameters}}"
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise ValueError(f"{what}, or its JSON text, and is no JSON: {error}") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise ValueError(f"{what}, and is a {type(tools).__name__}")
    made = []
    for tool in tools:
        if not isinstance(tool, dict):
            raise ValueError(f"{what}, and holds {tool!r:.100}. Rename the column if it is none")
        bare = "function" not in tool and isinstance(tool.get("name"), str) and "type" not in tool
        tool = {"type": "function", "function": tool} if bare else tool
        function = tool.get("function")
        if isinstance(function, dict) and isinstance(function.get("parameters"), str):
            parameters = json.loads(function["parameters"])
            tool = {**tool, "function": {**function, "parameters": parameters}}
        made.append(tool)
    return made


def calls_of(message: Message) -> list[Message]:
    """The calls of a message, those of OpenAI's old `function_call` among them."""
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        calls.append(message["function_call"])
    return as_calls(calls)


def spoken(message: Message) -> str:
    """All that a message says, as text to compare or to grade: its content, then its calls."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in calls_of(message)]
    return "\n".join(filter(None, [message.get("content") or "", *calls]))


def for_template(messages: list[Message]) -> list[Message]:
    """The messages as chat templates read them: the arguments of calls as mappings."""
    return [
        {**message, "tool_calls": [_with_mapping(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_mapping(call: Message) -> Message:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        arguments = json.loads(arguments)
    except ValueError:
        return call  # what the model wrote is no JSON; the template shows it as it is
    return {**call, "function": {**function, "arguments": arguments}}
