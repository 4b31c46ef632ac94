"""Chat completions with OpenAI's `logprobs`: our own trajectories, and responses as they came.

`logprobs.content` has one entry a written token, thinking and end of turn included where the
server counts them: {token, logprob, bytes, top_logprobs: [{token, logprob, bytes}, …]}. The prompt
is the chat template's, and not supervised.
"""

from typing import Any

from axolotl_distill.capture.layouts.base import (
    Completion,
    Context,
    Example,
    Row,
    without_intruder,
)
from axolotl_distill.capture.layouts.tokens import TokenIds, is_id


class Trajectories:
    """Rows of `axolotl distill generate`; those without `logprobs` supervise nothing."""

    renormalised = False
    count = None

    def fits(self, row: Row) -> bool:
        return {"prompt_id", "messages", "content", "logprobs"} <= row.keys()

    def read(self, row: Row, number: int, context: Context) -> Example:
        written = read_content(row["logprobs"] or [], context.tokens)
        context.tokens.check_spelling(written.ids, row, written.by_name)
        return written.after(
            context.prompt(row["messages"]),
            teacher=row.get("teacher"),
            prompt_tokens=(row.get("usage") or {}).get("prompt_tokens"),
        )


class OpenAIChat:
    """{"messages": […], "response": {…}}, with the request's messages also under `request`, and
    request or response also one level deeper under `body` (batch files)."""

    renormalised = False

    def fits(self, row: Row) -> bool:
        choices = _response(row).get("choices") or []
        return bool(choices) and "content" in (choices[0].get("logprobs") or {})

    def count(self, row: Row) -> int:
        return len(_response(row)["choices"])

    def read(self, row: Row, number: int, context: Context) -> Example:
        response = _response(row)
        choice = response["choices"][number]
        content = (choice.get("logprobs") or {}).get("content") or []
        written = read_content(content, context.tokens)
        context.tokens.check_spelling(written.ids, choice.get("message") or {}, written.by_name)
        return written.after(
            context.prompt(_messages(row)),
            teacher=response.get("model"),
            prompt_tokens=(response.get("usage") or {}).get("prompt_tokens"),
        )


def read_content(content: list[dict[str, Any]], tokens: TokenIds) -> Completion:
    """`logprobs.content`."""
    written = Completion(by_name=any(not is_id(entry["token"]) for entry in content))
    for entry in content:
        own = tokens.find(entry["token"], entry.get("bytes"))
        listed = entry.get("top_logprobs") or [entry]
        pairs = [(tokens.find(one["token"], one.get("bytes")), one["logprob"]) for one in listed]
        written.ids.append(own)
        written.expected.append(without_intruder(own, pairs))
    return written


def _messages(row: Row) -> list[Row]:
    request = row.get("request") or {}
    for place in (row, request, request.get("body") or {}):
        if place.get("messages"):
            return place["messages"]
    raise ValueError(
        "it has no `messages`: the answer does not say what was asked. Put the request's messages "
        "beside it"
    )


def _response(row: Row) -> Row:
    response = row.get("response") or row
    return response.get("body") or response
