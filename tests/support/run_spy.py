"""An Axolotl plugin for tests: keeps what a run was, seen from inside, one file a process.

`spy-RANK.json` beside the `output_dir`: how the processes and the model were wrapped once training
began, each step's exact figures, and the supervised tokens of this process in each batch.
"""

import json
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from bitsandbytes.nn import Linear4bit
from transformers import TrainerCallback

KEPT = ("loss", "grad_norm")


class RunSpy(BasePlugin):
    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [Watch(trainer)]


class Watch(TrainerCallback):
    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.seen: dict[str, Any] = {"steps": [], "tokens": [], "head_held": []}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accelerator, wrapped = self.trainer.accelerator, self.trainer.model_wrapped
        self.model = accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        causal_lm = getattr(self.model, "get_base_model", lambda: self.model)()
        self.head = causal_lm.get_output_embeddings()
        self.seen |= {
            "processes": accelerator.num_processes,
            "kind": str(accelerator.distributed_type.value),
            "wrapper": type(wrapped).__name__,
            "sharded": sum(_is_sharded(p) for p in wrapped.parameters()),
            "parameters": sum(1 for _ in wrapped.parameters()),
            "four_bits": sum(isinstance(m, Linear4bit) for m in wrapped.modules()),
            "devices": sorted({str(p.device) for p in wrapped.parameters()}),
        }
        if hasattr(wrapped, "zero_optimization_stage"):
            self.seen["stage"] = wrapped.zero_optimization_stage()
        if accelerator.is_fsdp2:
            units = [
                m._get_fsdp_state()._fsdp_param_group for m in wrapped.modules() if _is_unit(m)
            ]
            inner = [unit for unit in units[1:] if unit is not None]
            self.seen["offloaded"] = type(inner[0].offload_policy).__name__
            self.seen["precision"] = str(inner[0].mp_policy.param_dtype)
            self.seen["reshards"] = sorted({unit._reshard_after_forward for unit in inner})
            self.seen["units"] = len(units)
        self.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_tensor(kwargs.get("shift_labels")):
            self.seen["tokens"].append(int((kwargs["shift_labels"] != -100).sum()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        weight = getattr(self.head, "base_layer", self.head).weight
        held = weight.to_local() if hasattr(weight, "to_local") else weight
        self.seen["head_held"].append(held.numel())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            kept = [name for name in logs if name in KEPT or name.startswith("distill/")]
            self.seen["steps"].append({name: float(logs[name]) for name in kept})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rank = self.trainer.accelerator.process_index
        path = Path(args.output_dir).parent / f"spy-{rank}.json"
        path.write_text(json.dumps(self.seen))


def _is_sharded(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "full_tensor") or hasattr(parameter, "ds_id")


def _is_unit(module: torch.nn.Module) -> bool:
    return hasattr(module, "_get_fsdp_state")
