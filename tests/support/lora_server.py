"""A real small model with LoRA adapters behind vLLM's protocol, for the fault-injecting server.

What it answers was read in vLLM 0.32: an adapter is loaded by name, weights whose names are not the
model's are passed over without a word, and a version that is loaded stays until it is unloaded.
"""

import copy
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.model_types import tiny

Body = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def student(seed: int = 0, **changes: Any) -> Any:
    """A tiny model with a new adapter, as it trains."""
    torch.manual_seed(seed)
    given = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "task_type": "CAUSAL_LM"}
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = get_peft_model(
        tiny("llama"), LoraConfig(**{**given, "target_modules": targets, **changes})
    )
    return model.train()


class LoraServer:
    """Handlers for FaultyServer.

    spoil    may change an adapter's tensors as they are read
    answer   may change a completion's choice before it is sent
    stale    a name that is asked for, and the one whose weights answer
    writes   as `stale`, for the tokens that are written alone
    """

    def __init__(
        self,
        base: Any,
        tokenizer: Any,
        *,
        context: int = 512,
        max_rank: int = 16,
        spoil: Callable[[Tensors], Tensors] = lambda tensors: tensors,
        answer: Callable[[Body], Body] = lambda choice: choice,
        stale: Callable[[str], str] = lambda name: name,
        writes: Callable[[str], str] = lambda name: name,
    ):
        self.models: dict[str, Any] = {"student": base.eval()}
        self.tokenizer, self.context, self.max_rank = tokenizer, context, max_rank
        self.spoil, self.answer, self.stale, self.writes = spoil, answer, stale, writes
        self.lock = threading.Lock()

    @property
    def handlers(self) -> dict[str, Callable[[Body], Any]]:
        return {
            "/v1/models": self.listed,
            "/tokenize": self.tokenize,
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            "/v1/completions": self.complete,
        }

    def listed(self, body: Body) -> Any:
        about = {"object": "model", "created": 0, "owned_by": "test"}
        parents = {name: None if name == "student" else "student" for name in self.models}
        data = [
            {**about, "id": name, "parent": parent, "max_model_len": self.context}
            for name, parent in parents.items()
        ]
        return {"object": "list", "data": data}

    def tokenize(self, body: Body) -> Any:
        text = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return {"tokens": text["input_ids"]}

    def load(self, body: Body) -> Any:
        name, path = body["lora_name"], Path(body["lora_path"])
        if name in self.models:
            return 400, {"error": {"message": f"'{name}' has already been loaded."}}
        if not (path / "adapter_config.json").exists():
            return 404, {"error": {"message": f"No adapter found for {path}"}}
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            return 500, {"error": {"message": said}}
        tensors = load_file(path / "adapter_model.safetensors")
        if not tensors:
            return 500, {"error": {"message": "Worker failed with error ''"}}
        with tempfile.TemporaryDirectory() as scratch:
            read = Path(scratch) / "adapter"
            shutil.copytree(path, read)
            save_file(self.spoil(tensors), read / "adapter_model.safetensors")
            model = PeftModel.from_pretrained(copy.deepcopy(self.models["student"]), read)
        self.models[name] = model.eval()
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Body) -> Any:
        if body["lora_name"] not in self.models:
            return 404, {"error": {"message": "cannot be found"}}
        del self.models[body["lora_name"]]
        return "Success"

    def complete(self, body: Body) -> Any:
        prompt = body["prompt"]
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if len(prompt) + body["max_tokens"] > self.context:
            return 400, {"error": {"message": "longer than the context"}}
        name = self.stale(body["model"])
        choice: Body = {"index": 0, "text": "?", "prompt_token_ids": prompt}
        if body.get("prompt_logprobs") is not None:
            logprobs = self._logprobs(name, prompt)
            rows: list[Any] = [None]
            for place, token in enumerate(prompt[1:]):
                about = {"logprob": logprobs[place, token].item(), "rank": 1}
                rows.append({str(token): about})
            return {"choices": [self.answer({**choice, "prompt_logprobs": rows})]}
        ids, logprobs = self._written(self.writes(name), body)
        choice |= {"token_ids": ids, "logprobs": {"token_logprobs": logprobs}}
        return {"choices": [self.answer(choice)]}

    def _written(self, name: str, body: Body) -> tuple[list[int], list[float]]:
        drawn = torch.Generator().manual_seed(body["seed"])
        ids, found = list(body["prompt"]), []
        while len(found) < body["max_tokens"]:
            logprobs = self._logprobs(name, [*ids, 0])[-1]
            probs = (logprobs / body["temperature"]).softmax(-1)
            likeliest = probs.sort(descending=True)
            before = likeliest.values.cumsum(0) - likeliest.values
            kept = before < body["top_p"]
            if body["top_k"] > 0:
                kept[body["top_k"] :] = False
            place = torch.multinomial(likeliest.values * kept, 1, generator=drawn)
            token = int(likeliest.indices[place])
            ids.append(token)
            found.append(logprobs[token].item())
            if token in body["stop_token_ids"]:
                break
        return ids[len(body["prompt"]) :], found

    def _logprobs(self, name: str, ids: list[int]) -> torch.Tensor:
        with self.lock, torch.no_grad():
            logits = self.models[name](input_ids=torch.tensor([ids])).logits[0, :-1]
        return logits.float().log_softmax(-1)


class FullServer(LoraServer):
    """Takes all weights while it runs, as in development mode; `spoil` may change them.

    It writes with the keys and values that the weights of before gave it until its cache is reset,
    as vLLM does of a prompt that it has had.

    skips   whether a reload reads what it had before, and says that all went well
    forgets whether a reset does what it says
    busy    whether it says that it is writing, when its cache is to be reset
    takes   seconds of a reload
    """

    def __init__(self, base: Any, tokenizer: Any, **changes: Any):
        self.skips = changes.pop("skips", False)
        self.forgets = changes.pop("forgets", True)
        self.busy = changes.pop("busy", False)
        self.takes = changes.pop("takes", 0.0)
        self.reloads: list[str] = []
        given = {"writes": lambda name: "cached", **changes}
        super().__init__(base, tokenizer, **given)
        self.models["cached"] = copy.deepcopy(base).eval()

    @property
    def handlers(self) -> dict[str, Callable[[Body], Any]]:
        adapters = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
        plain = {path: work for path, work in super().handlers.items() if path not in adapters}
        return {
            **plain,
            "/collective_rpc": self.call,
            "/reset_prefix_cache": self.reset,
        }

    def call(self, body: Body) -> Any:
        assert body["method"] == "reload_weights"
        folder = Path(body["kwargs"]["weights_path"])
        self.reloads.append(folder.name)
        time.sleep(self.takes)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            said = "Call to collective_rpc method failed: Worker failed with error"
            return 500, {"error": {"message": f"{said} 'Cannot find any model weights'"}}
        tensors = {name: t for file in files for name, t in load_file(file).items()}
        with self.lock:
            if not self.skips:
                self.models["student"].load_state_dict(self.spoil(tensors), strict=False)
        return {"results": [None]}

    def reset(self, body: Body) -> Any:
        if self.busy:
            return {"success": False}
        if self.forgets:
            self.models["cached"] = copy.deepcopy(self.models["student"])
        return {"success": True}
