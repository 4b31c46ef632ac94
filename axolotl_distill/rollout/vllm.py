"""What a vLLM server is asked for: to take an adapter or all weights, to score a text, to write.

Read in vLLM 0.32, and run against it.
"""

import asyncio
import math
import os
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import openai

from axolotl_distill.config.on_policy import OnPolicyArgs, RolloutServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.show import redact
from axolotl_distill.teachers.client import RAW, Answer, ServerClient
from axolotl_distill.teachers.engines import prompt_rows

T = TypeVar("T")
# Whatever the server takes from the model's generation_config where a request is silent.
PLAIN = {
    "n": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
NO_ENDPOINT = (
    "It takes no adapters while it runs. Start it with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm "
    "serve MODEL --enable-lora`, and let `base_url` end in /v1."
)
NO_DEV_MODE = (
    "It takes no weights while it runs. Start it as `VLLM_SERVER_DEV_MODE=1 vllm serve MODEL`, "
    "where only the training reaches it: its endpoints for development let whoever asks call "
    "anything in it. Or train an adapter."
)


class Written(NamedTuple):
    """Token ids, the stop token included, and their log-probabilities at T = 1 in nats."""

    ids: list[int]
    logprobs: np.ndarray


class VLLM:
    """A vLLM server that holds the student's base model. Holds an event loop and connections."""

    def __init__(self, server: RolloutServerArgs):
        self.server = server
        self.client = ServerClient(server, again="The training goes on from its last checkpoint.")
        self._runner = asyncio.Runner()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()

    def load(self, name: str, path: str, *, empty: bool = False) -> None:
        """The adapter in the folder `path`, as the server names it, under a name of its own.

        empty   it has no weights, which no server takes; looks for other reasons

        Raises ServerError with what the server says where it does not take it.
        """
        body = {"lora_name": name, "lora_path": path}
        # A server that is there and has no use for an empty one says 500, which is not tried again.
        status, said = self._post("load_lora_adapter", body, 0 if empty else 2)
        # A name is asked for once: what is there already came with an answer that was lost.
        if status == 200 or "already been loaded" in said:
            return
        at = f"{self.server.base_url} did not take the adapter in {path} ({status}): {said}"
        if status == 404 and "No adapter found" not in said and "lora" not in said.lower():
            raise ServerError(f"{at} {NO_ENDPOINT}")
        remedy = _remedy(said, path)
        if remedy is None and empty:
            return
        raise ServerError(f"{at} {remedy or 'Look at the log of the server.'}")

    def unload(self, name: str) -> bool:
        """Whether there was an adapter of that name. Raises ServerError where nobody answers."""
        status, _ = self._post("unload_lora_adapter", {"lora_name": name})
        return status == 200

    def reload(self, path: str) -> None:
        """All weights out of the checkpoint in the folder `path`, as the server names it, in place
        of those that it has; nothing is left of what it cached with them.

        Raises ServerError with what the server says where it does not take them.
        """
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        # Not twice: one that takes longer than `timeout` is still at it.
        status, said = self._post(f"{self.client.root}/collective_rpc", body, retries=0)
        if status == 404:
            raise ServerError(f"{self.server.base_url} (404): {said} {NO_DEV_MODE}")
        if status != 200:
            raise ServerError(
                f"{self.server.base_url} did not take the weights in {path} ({status}): {said} Can "
                "it read that folder? Name one that both see: `distill.on_policy.server.adapters`, "
                "and `adapters_there` where the server has it under another name. Its log says "
                "more; start it anew, for it may have taken half of them."
            )
        self.forget()

    def forget(self) -> None:
        """The server's prefix cache is emptied. Raises ServerError where it is not."""
        status, said = self._post(f"{self.client.root}/reset_prefix_cache", {})
        if status == 404:
            raise ServerError(f"{self.server.base_url} (404): {said} {NO_DEV_MODE}")
        # An older one says nothing.
        if status != 200 or "false" in said:
            raise ServerError(
                f"{self.server.base_url} did not empty its prefix cache ({status}): {said} It does "
                "not while it writes: is something else asking it? It is this run's alone."
            )

    def _post(self, path: str, body: dict[str, Any], retries: int = 2) -> tuple[int, str]:
        """Status and text, which is no JSON always. path  below base_url, or a whole URL"""
        server = self.server
        url = path if "://" in path else f"{server.base_url}/{path}"
        try:
            with openai.OpenAI(
                base_url=server.base_url,
                api_key=os.environ.get(server.api_key_env) or "none",
                max_retries=min(retries, server.retries),
                timeout=server.timeout,
            ) as client:
                options: Any = {"headers": {RAW: "true"}}
                answer: Any = client.post(url, body=body, cast_to=object, options=options)
                return answer.status_code, redact(answer.text[:500])
        except openai.APIStatusError as error:
            return error.status_code, redact(error.response.text[:500])
        except openai.APITimeoutError as error:
            raise ServerError(
                f"{redact(url)} did not answer within {server.timeout:g} seconds "
                "(`distill.on_policy.server.timeout`). Set more where the model is large; or is "
                "the server stuck?"
            ) from error
        except openai.APIConnectionError as error:
            raise ServerError(
                f"{redact(url)} does not answer: {error.__cause__ or error}. Is "
                "the server up, and `distill.on_policy.server.base_url` right?"
            ) from error

    async def score(self, name: str, ids: Sequence[int]) -> np.ndarray:
        """[S − 1] log-probabilities of ids[1:], each after what stands before it, in nats at T = 1.

        Raises what ServerClient.post does; an answer of another length, or with what is no
        log-probability, is asked for again.
        """
        found: list[np.ndarray] = []
        body = {"model": name, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}

        def check(answer: Answer) -> None:
            rows = prompt_rows(_choice(answer, "prompt_logprobs"))
            if len(rows) != len(ids):
                raise ValueError(f"it has {len(rows)} rows for a text of {len(ids)} tokens")
            own = [dict(row or ()).get(token) for row, token in zip(rows[1:], ids[1:], strict=True)]
            found.append(_logprobs(own))

        await self.client.post("/completions", {**PLAIN, **body, "temperature": 1.0}, check=check)
        return found[-1]

    async def write(
        self,
        name: str,
        prompt: Sequence[int],
        most: int,
        stop: Sequence[int],
        seed: int,
        args: OnPolicyArgs,
    ) -> Written:
        """A completion of 1 to `most` tokens; it ends with one of `stop`, or has `most`.

        What is drawn is the distribution that `args` say of the server's model, without anything
        from its generation_config, and follows from `seed`. Raises what ServerClient.post does; an
        answer that is something else is asked for again.
        """
        found: list[Written] = []
        body = {
            "model": name,
            "prompt": list(prompt),
            "max_tokens": most,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": args.top_k or -1,
            "seed": seed,
            # The model's own end, unless it is among them, is not the trainer's.
            "ignore_eos": True,
            "stop_token_ids": list(stop),
            "return_token_ids": True,
            "logprobs": 0,
        }

        def check(answer: Answer) -> None:
            choice = answer.get("choices") or [{}]
            sent = choice[0].get("prompt_token_ids")
            if sent is not None and sent != list(prompt):
                raise ValueError(f"it answers a prompt of {len(sent)} other tokens")
            ids = _choice(answer, "token_ids")
            ended = bool(ids) and ids[-1] in stop
            if not all(type(token) is int and token >= 0 for token in ids):
                raise ValueError("its `token_ids` are not all numbers of tokens")
            if not 1 <= len(ids) <= most or (len(ids) < most and not ended):
                raise ValueError(
                    f"it has {len(ids)} tokens that end with {ids[-1:]}, and was asked for {most} "
                    f"or an end with one of {list(stop)}. Has it stop tokens of its own?"
                )
            if any(token in stop for token in ids[:-1]):
                raise ValueError("it goes on after a stop token")
            logprobs = (_choice(answer, "logprobs") or {}).get("token_logprobs") or []
            if len(logprobs) != len(ids):
                raise ValueError(f"it has {len(ids)} tokens and {len(logprobs)} log-probabilities")
            found.append(Written(ids, _logprobs(logprobs)))

        await self.client.post("/completions", {**PLAIN, **body}, check=check)
        return found[-1]


def _choice(answer: Answer, name: str) -> Any:
    choices = answer.get("choices")
    value = choices[0].get(name) if isinstance(choices, list) and choices else None
    if value is None:
        raise ValueError(
            f"it has no `choices.0.{name}`. Is the server a vLLM, and recent enough for "
            "`return_token_ids`?"
        )
    return value


def _logprobs(values: Sequence[Any]) -> np.ndarray:
    """fp64; raises ValueError for what is no log-probability."""
    for place, value in enumerate(values):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"its log-probability {place} is {value}")
    found = np.array(values, dtype=np.float64)
    if (found > 1e-3).any():
        raise ValueError(f"its log-probabilities go up to {found.max():g}")
    return found


def _remedy(said: str, path: str) -> str | None:
    if "max_lora_rank" in said:
        return "Start vLLM with a `--max-lora-rank` of `lora_r` or more."
    if "No adapter found" in said or "No such file" in said:
        return (
            f"Can the server read {path}? Name a folder that both see: "
            "`distill.on_policy.server.adapters`, and `adapters_there` where the server has it "
            "under another name."
        )
    if "enable" in said.lower() and "lora" in said.lower():
        return NO_ENDPOINT
    return None
