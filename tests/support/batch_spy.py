"""An Axolotl plugin for tests: keeps what the trainer hands the model, as `batches.pt`."""

from pathlib import Path

import torch
from axolotl.integrations.base import BasePlugin


class BatchSpy(BasePlugin):
    def post_model_load(self, cfg, model):
        batches = []

        def keep(module, args, kwargs):
            batches.append({k: v for k, v in kwargs.items() if torch.is_tensor(v)})
            Path(cfg.output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(batches, Path(cfg.output_dir) / "batches.pt")

        model.register_forward_pre_hook(keep, with_kwargs=True)
