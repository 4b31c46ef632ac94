"""Completions from a server that speaks the OpenAI API."""

from collections.abc import Iterable, Iterator
from typing import Any

from axolotl_distill.errors import ServerError
from axolotl_distill.generate.prompts import with_examples
from axolotl_distill.generate.request import Completion, Refused, Request
from axolotl_distill.recipe import RecipeTeacher
from axolotl_distill.recipe.generate import GenerateArgs
from axolotl_distill.teachers.client import (
    Answer,
    RequestRefusedError,
    ServerClient,
    TriesUsedUpError,
)

# What vLLM and SGLang say of a completion that they gave up.
BROKEN = ("abort", "error")
# Requests in a row that came to nothing, without an answer between: then it is the server.
MOST_GIVEN_UP = 20


class ServerBackend:
    """One chat completion a request, so that a kill loses little and every seed is its own."""

    def __init__(self, teacher: RecipeTeacher, args: GenerateArgs, uid: str):
        self._client = ServerClient(teacher.server)
        self._logprobs = args.logprobs
        self._seed = args.seed
        self._examples = args.examples
        self._uid = uid
        self._given_up = 0
        self.concurrency = teacher.server.concurrency
        wanted = {
            "model": teacher.name,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_tokens": args.max_tokens,
        }
        self._body = {name: value for name, value in wanted.items() if value is not None}
        if args.logprobs is not None:
            self._body |= {"logprobs": True, "top_logprobs": args.logprobs}
            if teacher.server.engine == "vllm":
                self._body["return_tokens_as_token_ids"] = True
        self._body |= args.extra

    def batches(self, todo: Iterable[Request]) -> Iterator[list[Request]]:
        return ([request] for request in todo)

    async def complete(self, batch: list[Request]) -> list[Completion | Refused]:
        return [await self._ask(request) for request in batch]

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, request: Request) -> Completion | Refused:
        messages = with_examples(request.prompt.messages, self._examples)
        body = {**self._body, "messages": messages}
        if self._seed is not None:
            body["seed"] = request.seed(self._seed)
        key = f"{self._uid}-{request.id}"
        try:
            answer = await self._client.post("/chat/completions", body, check=_completion, key=key)
        except RequestRefusedError as error:
            return Refused(str(error))
        except TriesUsedUpError as error:
            self._given_up += 1
            if self._given_up >= MOST_GIVEN_UP:
                raise
            return Refused(str(error))
        self._given_up = 0
        completion = _completion(answer)
        if self._logprobs is None or completion.logprobs is not None:
            return completion
        raise ServerError(
            f"{self._client.server.base_url} answered without log-probabilities, and "
            f"`generate.logprobs: {self._logprobs}` asks for them. Remove the key, or use a server "
            "that gives them."
        )


def _completion(answer: Answer) -> Completion:
    """Raises ValueError for an answer that is no whole chat completion."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError(f"`choices` must hold one completion, and is {choices!r:.200}")
    choice = choices[0]
    message, finish_reason = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise ValueError(f"`message` must be an object, and is {message!r:.200}")
    if not isinstance(finish_reason, str) or finish_reason in BROKEN:
        raise ValueError(f"`finish_reason` is {finish_reason!r}: the completion is not whole")
    # Newer releases of vLLM say `reasoning`; others, and older ones, `reasoning_content`.
    reasoning = _text(message, "reasoning_content") or _text(message, "reasoning")
    return Completion(
        content=_text(message, "content") or "",
        finish_reason=finish_reason,
        reasoning_content=reasoning,
        usage=_usage(answer.get("usage")),
        logprobs=_logprobs(choice.get("logprobs")),
    )


def _text(message: dict[str, Any], name: str) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` must be text, and is {value!r:.200}")
    return value


def _usage(usage: Any) -> dict[str, int] | None:
    names = ("prompt_tokens", "completion_tokens")
    if not isinstance(usage, dict) or not all(isinstance(usage.get(name), int) for name in names):
        return None
    return {name: usage[name] for name in names}


def _logprobs(logprobs: Any) -> list[dict[str, Any]] | None:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return content if isinstance(content, list) else None
