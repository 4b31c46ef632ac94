"""Completions from a server that speaks the OpenAI API."""

from collections.abc import Iterable, Iterator
from functools import partial

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.generate.answer import read_answer, tags_of
from axolotl_distill.generate.prompts import with_examples
from axolotl_distill.generate.request import EMPTY, Completion, Refused, Request
from axolotl_distill.show import redact
from axolotl_distill.teachers.client import RequestRefusedError, ServerClient, TriesUsedUpError
from axolotl_distill.trajectories import Row

# Requests in a row that came to nothing, without an answer between: then it is the server.
MOST_GIVEN_UP = 20


class ServerBackend:
    """One chat completion a request, so that a kill loses little and every seed is its own."""

    def __init__(self, teacher: TeacherArgs, args: GenerateArgs, uid: str):
        assert teacher.server is not None
        self.teacher = teacher.model
        self._client = ServerClient(teacher.server)
        self._logprobs = args.logprobs
        self._seed = args.seed
        self._examples = args.examples
        self._uid = uid
        self._read = partial(read_answer, tags=tags_of(args), opened=args.thinking_opened)
        self._given_up = 0
        self.concurrency = teacher.server.concurrency
        wanted = {
            "model": teacher.model,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_tokens": args.max_tokens,
        }
        self._body: Row = {name: value for name, value in wanted.items() if value is not None}
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
        if request.prompt.tools:
            body["tools"] = request.prompt.tools
        if self._seed is not None:
            body["seed"] = request.seed(self._seed)
        key = f"{self._uid}-{request.id}"
        try:
            answer = await self._client.post("/chat/completions", body, check=self._read, key=key)
        except RequestRefusedError as error:
            return Refused(str(error))
        except TriesUsedUpError as error:
            self._given_up += 1
            if self._given_up >= MOST_GIVEN_UP:
                raise
            return Refused(str(error))
        self._given_up = 0
        completion = self._read(answer)
        if completion.is_empty:
            return Refused(EMPTY.format(reason=completion.finish_reason), completion.usage)
        if self._logprobs is None or completion.logprobs is not None:
            return completion
        raise ServerError(
            f"{redact(self._client.server.base_url)} answered without log-probabilities, "
            f"and `generate.logprobs: {self._logprobs}` asks for them. Remove the key, or use a "
            "server that gives them."
        )
