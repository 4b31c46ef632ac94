"""What depends on Axolotl's version or leaves a gap in it, in one place (tested: 0.19)."""

import logging
import os
from typing import Any

import torch
from axolotl.monkeypatch.multipack import SUPPORTED_MULTIPACK_MODEL_TYPES
from axolotl.utils.collators import (
    BatchSamplerDataCollatorForSeq2Seq,
    DataCollatorForSeq2Seq,
    V2BatchSamplerDataCollatorForSeq2Seq,
)
from axolotl.utils.distributed import is_main_process
from axolotl.utils.logging import get_logger

from axolotl_distill.errors import ConfigError

LOG = get_logger(__name__)


def has_accelerator() -> bool:
    """Whether torch sees anything but the CPU."""
    return torch.accelerator.is_available()


def world_size() -> int:
    """Processes of this launch, before torch.distributed is initialised."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def quiet_other_ranks(name: str) -> None:
    """What the logger `name` and those below it warn of is said by the main process alone, as
    Axolotl's own loggers do."""
    if not is_main_process():
        logging.getLogger(name).setLevel(logging.ERROR)


def base_collator(cfg: Any, is_eval: bool) -> tuple[type, bool]:
    """(collator class, whether it packs) that Axolotl would use without a plugin.

    Axolotl asks a plugin for a class before it makes its own choice and offers no way to call
    that choice, so it is repeated here: follows HFCausalTrainerBuilder.build_collator.
    """
    packed = bool(cfg.eval_sample_packing if is_eval else cfg.sample_packing)
    if not packed:
        return DataCollatorForSeq2Seq, False
    isolates_by_mask = (
        cfg.attn_implementation == "flex_attention"
        or cfg.model_config_type in SUPPORTED_MULTIPACK_MODEL_TYPES
        or (cfg.model_config_type == "llama" and cfg.attn_implementation != "flash_attention_2")
    )
    if isolates_by_mask:
        return V2BatchSamplerDataCollatorForSeq2Seq, True
    return BatchSamplerDataCollatorForSeq2Seq, True


def prepare_cpu_launch(cfg: Any) -> None:
    """Several processes on a CPU crash on Axolotl's default device_map; there is none to map."""
    if not has_accelerator() and world_size() > 1:
        cfg.device_map = None


def settle_precision(cfg: Any) -> None:
    """Train in float32 on a CPU where the YAML names no precision, in place.

    Axolotl's `bf16: auto`, its default, is fp16 where torch sees no accelerator, and fp16 does not
    train on a CPU. Raises ConfigError where the YAML asks for fp16 itself.
    """
    if has_accelerator() or cfg.get("bf16") not in (None, "auto", False):
        return
    for key in ("fp16", "float16"):
        if cfg.get(key):
            raise ConfigError(
                f"`{key}: true` needs a GPU, and torch sees none. Set `{key}: false` to train in "
                "float32, or `bf16: true`, which runs on a CPU, slowly."
            )
    if cfg.get("bf16") is not False and not cfg.get("bfloat16"):
        LOG.info("axolotl-distill: torch sees no GPU; training in float32 (`bf16: false`)")
        cfg["bf16"] = False
