"""How vLLM and SGLang are asked for a text's log-probabilities, and how each answers.

Both give one row a token of the prompt: row t describes token t, predicted from what stands
before it, so row 0 is null. Both give them at T=1, whatever temperature is sampled at.
"""

from typing import Any, Protocol

from axolotl_distill.teachers.top import Pairs

Answer = dict[str, Any]


class Engine(Protocol):
    """The wire format of one kind of server."""

    too_many: str
    """What to do when the server refuses as many log-probabilities as are asked for."""

    def path(self, root: str) -> str:
        """Where to POST: below base_url, or a whole URL made from scheme://host:port."""
        ...

    def body(
        self, model: str, input_ids: list[int], k: int, temperature: float = 1.0
    ) -> dict[str, Any]: ...

    def rows(self, answer: Answer, k: int, realised: bool = False) -> list[Pairs | None]:
        """One a token of the prompt: the k likeliest and, if `realised`, the prompt's own token.
        Raises ValueError when the answer has another shape."""
        ...


class VLLM:
    """POST /v1/completions with `prompt_logprobs` (read in vLLM 0.32).

    A row is {"<token id>": {"logprob", "rank", "decoded_token"}}: the prompt's own token first,
    then the k likeliest. Where the own token is not among these it makes k+1, which its rank
    tells and its place does not.
    """

    too_many = "Start vLLM with `--max-logprobs {k}` or more (its default is 20)"

    def path(self, root: str) -> str:
        return "/completions"

    def body(
        self, model: str, input_ids: list[int], k: int, temperature: float = 1.0
    ) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": input_ids,
            "max_tokens": 1,
            "temperature": temperature,
            "prompt_logprobs": k,
        }

    def rows(self, answer: Answer, k: int, realised: bool = False) -> list[Pairs | None]:
        found = _field(answer, "choices", 0, "prompt_logprobs")
        return prompt_rows(found, None if realised else k)


class SGLang:
    """POST /generate, SGLang's own interface (read in its `tokenizer_manager.py`).

    A row is [[logprob, token id, text or null], …], exactly the k likeliest; the prompt's own token
    is given apart, as one entry a token.
    """

    too_many = "Raise the server's limit of top log-probabilities to {k}"

    def path(self, root: str) -> str:
        return f"{root}/generate"

    def body(
        self, model: str, input_ids: list[int], k: int, temperature: float = 1.0
    ) -> dict[str, Any]:
        return {
            "input_ids": input_ids,
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
            "sampling_params": {"max_new_tokens": 1, "temperature": temperature},
        }

    def rows(self, answer: Answer, k: int, realised: bool = False) -> list[Pairs | None]:
        found = _field(answer, "meta_info", "input_top_logprobs")
        rows = [row and [(int(entry[1]), entry[0]) for entry in row] for row in found]
        if not realised:
            return rows
        own = _field(answer, "meta_info", "input_token_logprobs")
        if len(own) != len(rows):
            raise ValueError(f"it has {len(own)} tokens of the text and {len(rows)} rows")
        return [row and [*row, (int(o[1]), o[0])] for row, o in zip(rows, own, strict=True)]


ENGINES: dict[str, Engine] = {"vllm": VLLM(), "sglang": SGLang()}


def prompt_rows(rows: list[Answer | None], k: int | None = None) -> list[Pairs | None]:
    """vLLM's `prompt_logprobs` as pairs; entries of a rank beyond k are left out."""
    return [
        None
        if row is None
        else [
            (int(token), about["logprob"])
            for token, about in row.items()
            if k is None or (about.get("rank") or 0) <= k
        ]
        for row in rows
    ]


def _field(answer: Any, *path: str | int) -> list[Any]:
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError):
            answer = None
        if answer is None:
            shown = ".".join(map(str, path))
            raise ValueError(f"it has no `{shown}`. Is `server.engine` what the server is?")
    return answer
