"""An Axolotl plugin for tests: keeps the gradients of every step, one file a process.

`gradients-RANK.pt` beside the `output_dir`: of each step, by name, what the optimizer was about to
take; embeddings and head, which are most of a tiny model, by the length of each row.
"""

from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

LARGE = 1 << 20


class GradientSpy(BasePlugin):
    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [Watch(trainer)]


class Watch(TrainerCallback):
    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        found = {}
        for name, parameter in self.trainer.model.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad.detach()
                found[name] = grad.norm(dim=-1) if grad.numel() > LARGE else grad.clone()
        self.steps.append(found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rank = self.trainer.accelerator.process_index
        torch.save(self.steps, Path(args.output_dir).parent / f"gradients-{rank}.pt")
