"""A real model behind the wire formats of vLLM and SGLang, for the fault-injecting server.

What they put into an answer was read in vLLM 0.32 and in SGLang's tokenizer_manager.py; the slow
test holds the first to a real server.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

Body = dict[str, Any]


class ModelServer:
    """Handlers for FaultyServer. `spoil` may change a prompt's rows before they are sent; `late`
    sleeps a little before every answer, so that answers overtake one another."""

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        name: str = "teacher",
        context: int | None = 2048,
        max_logprobs: int = 64,
        spoil: Callable[[list[Any]], list[Any]] = lambda rows: rows,
        late: float = 0.0,
    ):
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.context, self.max_logprobs = context, max_logprobs
        self.spoil, self.late = spoil, late
        self.lock = threading.Lock()

    @property
    def handlers(self) -> dict[str, Callable[[Body], Any]]:
        return {
            "/v1/models": self.models,
            "/tokenize": self.tokenize,
            "/v1/completions": self.vllm,
            "/generate": self.sglang,
        }

    def models(self, body: Body) -> Any:
        about = {"id": self.name, "object": "model", "created": 0, "owned_by": "test"}
        return {"object": "list", "data": [{**about, "max_model_len": self.context}]}

    def tokenize(self, body: Body) -> Any:
        text = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"tokens": text["input_ids"], "count": len(text["input_ids"])}

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """fp32 [S - 1, V]: row t is about token t + 1."""
        with self.lock, torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0, :-1]
        return logits.float().log_softmax(-1)

    def vllm(self, body: Body) -> Any:
        ids, k = body["prompt"], body["prompt_logprobs"]
        if k > self.max_logprobs:
            said = f"Requested prompt logprobs of {k}, which is greater than max allowed: "
            return 400, {"error": {"message": f"{said}{self.max_logprobs}"}}
        logprobs = self.logprobs(ids)
        top = logprobs.topk(k)
        rows: list[Any] = [None]
        for place, (own, values, found) in enumerate(zip(ids[1:], top[0], top[1], strict=True)):
            rank = int((logprobs[place] >= logprobs[place, own]).sum())
            row = {str(own): self._about(logprobs[place, own], rank, own)}
            for rank, (value, token) in enumerate(zip(values, found.tolist(), strict=True), 1):
                row[str(token)] = self._about(value, rank, token)
            rows.append(row)
        self._be_late()
        choice = {"index": 0, "text": "?", "prompt_logprobs": self.spoil(rows)}
        return {"object": "text_completion", "choices": [choice]}

    def sglang(self, body: Body) -> Any:
        assert body["return_logprob"] and body["logprob_start_len"] == 0
        ids, k = body["input_ids"], body["top_logprobs_num"]
        logprobs = self.logprobs(ids)
        values, tokens = logprobs.topk(k)
        own: list[Any] = [[None, ids[0], None]]
        for place, token in enumerate(ids[1:]):
            own.append([logprobs[place, token].item(), token, None])
        rows: list[Any] = [None]
        for some, found in zip(values.tolist(), tokens.tolist(), strict=True):
            rows.append([[value, token, None] for value, token in zip(some, found, strict=True)])
        self._be_late()
        about = {"input_token_logprobs": own, "input_top_logprobs": self.spoil(rows)}
        return {"text": "?", "meta_info": about}

    def _about(self, logprob: torch.Tensor, rank: int, token: int) -> dict[str, Any]:
        return {"logprob": logprob.item(), "rank": rank, "decoded_token": "?"}

    def _be_late(self) -> None:
        if self.late:
            time.sleep(random.uniform(0.0, self.late))
