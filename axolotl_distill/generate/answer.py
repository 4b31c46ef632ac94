"""What a chat server's answer holds, whichever engine wrote it."""

import json
import math
from collections.abc import Sequence
from typing import Any

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.generate.request import Completion
from axolotl_distill.trajectories import Row, Usage, ending, split
from axolotl_distill.trajectories.plain import plain
from axolotl_distill.trajectories.thinking import KNOWN, Tags

# Where servers put the thinking that they split off themselves.
REASONING = ("reasoning_content", "reasoning", "thinking", "thinking_content", "reasoning_text")
# What stands for a probability of zero in vLLM's JSON.
LEAST_LOGPROB = -9999.0
OWN = {"role", "content", *REASONING}


def tags_of(args: GenerateArgs) -> Sequence[Tags]:
    """The pairs that stand around thinking."""
    if args.thinking_tags is None:
        return KNOWN
    return [Tags(opening, closing) for opening, closing in args.thinking_tags]


def read_answer(
    answer: Row, tags: Sequence[Tags] = KNOWN, opened: bool | None = None
) -> Completion:
    """The completion in an answer to /chat/completions; thinking and answer apart, and all else of
    the message to the letter.

    tags, opened  as `split` takes them

    Raises ValueError, with the server's own words where it gives some, for an answer that is no
    whole chat completion.
    """
    choices = answer.get("choices")
    if answer.get("error") and not choices:
        raise ValueError(f"the server says: {_words(answer['error'])}")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError(f"`choices` must hold one completion, and is {choices!r:.200}")
    choice = choices[0]
    message, finish_reason = choice.get("message"), choice.get("finish_reason")
    if choice.get("error"):
        raise ValueError(f"the server says: {_words(choice['error'])}")
    if not isinstance(message, dict):
        raise ValueError(f"`message` must be an object, and is {message!r:.200}")
    if isinstance(finish_reason, dict):  # SGLang's own interface: {type, matched, …}
        finish_reason = finish_reason.get("type")
    if not isinstance(finish_reason, str | None) or ending(finish_reason) == "broken":
        raise ValueError(f"`finish_reason` is {finish_reason!r}: the completion is not whole")
    text, thought = _texts(message.get("content"))
    reasoning = thought or next(filter(None, (_reasoning(message, key) for key in REASONING)), None)
    parts = split(text, reasoning, tags=tags, opened=opened)
    return Completion(
        content=parts.answer,
        finish_reason=finish_reason,
        reasoning_content=parts.thinking,
        thinking_form=parts.form,
        message=_rest(message),
        usage=_usage(answer.get("usage")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _words(error: Any) -> str:
    """What a server says of its error."""
    if not isinstance(error, dict):
        return str(error)[:500]
    more = error.get("metadata")
    said = [error.get("message"), more and json.dumps(more, ensure_ascii=False), error.get("code")]
    shown = [str(part) for part in said if part not in (None, "")]
    return (", ".join(shown) or json.dumps(error, ensure_ascii=False))[:500]


def _texts(content: Any) -> tuple[str, str]:
    """(text, thinking) of a message's content: text, or parts put together."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise ValueError(f"`content` must be text or a list of parts, and is {content!r:.200}")
    text, thinking = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in ("thinking", "reasoning"):
            thinking.append(_part(part, kind, "thinking", "reasoning", "text", "content"))
        elif kind in ("text", "output_text"):
            text.append(_part(part, kind, "text", "content"))
        elif kind != "redacted_thinking":
            raise ValueError(f"`content` has a part that is not text: {part!r:.200}")
    return "".join(text), "".join(thinking)


def _part(part: Any, kind: str, *keys: str) -> str:
    if isinstance(part, str):
        return part
    inner = next((part[key] for key in keys if part.get(key) is not None), "")
    if isinstance(inner, str):
        return inner
    if isinstance(inner, list):
        return "".join(_part(one, "text", "text", "content") for one in inner)
    raise ValueError(f"a part `{kind}` must hold text, and is {part!r:.200}")


def _reasoning(message: Row, name: str) -> str:
    value = message.get(name)
    if value is None or isinstance(value, str | dict):
        return value if isinstance(value, str) else ""
    return _part({name: value}, name, name)


def _rest(message: Row) -> Row | None:
    """All that says something beside role, content and thinking; null and [] say nothing."""
    kept = {key: value for key, value in message.items() if key not in OWN}
    kept |= {key: message[key] for key in REASONING if isinstance(message.get(key), dict)}
    if isinstance(message.get("content"), list):
        parts = [part for part in message["content"] if _has_more(part)]
        kept |= {"content_parts": parts} if parts else {}
    kept = {key: value for key, value in kept.items() if value not in (None, [], {}, "")}
    return plain(kept, "message") if kept else None


def _has_more(part: Any) -> bool:
    """Whether a part says more than its text: signatures, citations."""
    if not isinstance(part, dict):
        return False
    kind = part.get("type", "text")
    return kind == "redacted_thinking" or bool(
        {k for k, v in part.items() if v not in (None, [], {}, "")}
        - {"type", "text", "content", "thinking", "reasoning", "closed"}
    )


def _usage(usage: Any) -> Usage | None:
    """The server's count of tokens, under OpenAI's names or Anthropic's."""
    for names in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        if isinstance(usage, dict) and all(isinstance(usage.get(name), int) for name in names):
            return {"prompt_tokens": usage[names[0]], "completion_tokens": usage[names[1]]}
    return None


def _logprobs(logprobs: Any) -> list[Row] | None:
    """JSON has no infinity, and a probability of zero is one in some servers'."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return None
    try:
        json.dumps(content, allow_nan=False)
    except ValueError:
        return [_finite(entry) for entry in content]
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return LEAST_LOGPROB if isinstance(value, float) and not math.isfinite(value) else value
