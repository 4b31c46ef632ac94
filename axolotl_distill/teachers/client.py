"""One way to talk to a model server: bounded, retried, and with errors a user can act on."""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import openai

from axolotl_distill.config.server import ServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.show import redact

Answer = dict[str, Any]
# Makes the client hand over the answer itself, with the number of tries it took.
RAW = "X-Stainless-Raw-Response"
FATAL = {
    401: "Set the key in the environment variable that `api_key_env` names.",
    403: "The key has no right to this model; use another key or model.",
    404: "Check `base_url` (it ends in /v1 for most servers) and the model's name.",
}


class RequestRefusedError(ServerError):
    """The server refused this one request (400, 413, 422); another one may well pass."""


class TriesUsedUpError(ServerError):
    """The server is there, and this one request came to nothing however often it was sent; others
    may fare better."""


class ServerClient:
    """Posts JSON to an OpenAI-compatible server.

    At most `server.concurrency` requests are under way. 408, 409, 429, 5xx, lost connections and
    time-outs are retried by the openai client with exponential backoff, which heeds Retry-After;
    an answer that is no JSON, or that `check` finds wanting, is asked for again. Both kinds of
    tries together are at most 1 + `server.retries`.

    again   ends an error that another start may do away with
    """

    def __init__(
        self,
        server: ServerArgs,
        again: str = "What was received is kept; run the same command again.",
    ):
        self.server, self.again = server, again
        self._slots = asyncio.Semaphore(server.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=os.environ.get(server.api_key_env) or "none",
            max_retries=server.retries,
            # A host that is not there shows soon; `concurrency` may exceed the pool's connections.
            timeout=openai.Timeout(server.timeout, connect=min(30.0, server.timeout), pool=None),
        )

    @property
    def root(self) -> str:
        """scheme://host:port, where vLLM and SGLang have what is not OpenAI's."""
        parts = urlsplit(self.server.base_url)
        return f"{parts.scheme}://{parts.netloc}"

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        *,
        check: Callable[[Answer], object] = lambda answer: None,
        key: str | None = None,
    ) -> Answer:
        """The JSON object answered to a POST of `body`.

        path    below base_url ("/completions"), or a whole URL
        check   raises ValueError for an answer that cannot be used
        key     sent as Idempotency-Key: a server that knows it bills a repeated request once

        Raises RequestRefusedError when this request is refused, TriesUsedUpError when all tries
        ended in time-outs, 5xx or broken answers, and ServerError for anything that no other
        request would survive either.
        """
        tries, broken, unusable = self.server.retries + 1, 0, 0
        fault: Exception | None = None
        async with self._slots:
            while tries > 0:
                if broken:
                    await asyncio.sleep(min(8.0, 0.5 * 2.0 ** (broken - 1)))
                headers = {RAW: "true"}
                if key:
                    # One that was cut on its way is there, paid for; one that came whole and is of
                    # no use would come again for the same key.
                    headers["Idempotency-Key"] = f"{key}-{unusable}" if unusable else key
                try:
                    raw: Any = await self._client.post(
                        path,
                        cast_to=object,
                        body=body,
                        options={"headers": headers, "max_retries": tries - 1},
                    )
                except openai.APIStatusError as error:
                    raise self._refusal(path, error) from None
                except openai.APITimeoutError as error:
                    raise TriesUsedUpError(
                        f"{self._at(path)} takes longer than `timeout: {self.server.timeout:g}` "
                        f"seconds, however often it is asked (`retries: {self.server.retries}`). "
                        "Raise `timeout`, or ask for shorter answers."
                    ) from error
                except openai.APIConnectionError as error:
                    raise ServerError(
                        f"{self._at(path)} does not answer, however often it is asked (`retries: "
                        f"{self.server.retries}`): {error.__cause__ or error}. Is the server up, "
                        f"and `base_url` right? {self.again}"
                    ) from error
                whole = False
                try:
                    answer = json.loads(raw.content)
                    whole = True
                    if not isinstance(answer, dict):
                        raise ValueError(f"it is a {type(answer).__name__}, not a JSON object")
                    check(answer)
                    return answer
                except ValueError as error:
                    fault = error
                    broken += 1
                    unusable += whole
                    tries -= raw.retries_taken + 1
        raise TriesUsedUpError(
            f"{self._at(path)} gave {broken} answers that cannot be used; the last: "
            f"{redact(fault)}. {self.again}"
        )

    async def close(self) -> None:
        await self._client.close()

    def _at(self, path: str) -> str:
        return redact(path if "://" in path else self.server.base_url + path)

    def _refusal(self, path: str, error: openai.APIStatusError) -> ServerError:
        said = redact(error.response.text[:500])
        message = f"{self._at(path)} answered {error.status_code}: {said}"
        if error.status_code in (400, 413, 422):
            return RequestRefusedError(message)
        if error.status_code >= 500:
            return TriesUsedUpError(f"{message} {self.again}")
        hint = FATAL.get(error.status_code, self.again)
        return ServerError(f"{message} {hint}")
