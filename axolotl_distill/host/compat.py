"""What depends on Axolotl's version or leaves a gap in it, in one place (tested: 0.19 and 0.21).

A version is known by what it can do, never by its number.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from axolotl.common import datasets
from axolotl.monkeypatch.multipack import SUPPORTED_MULTIPACK_MODEL_TYPES
from axolotl.utils.collators import (
    BatchSamplerDataCollatorForSeq2Seq,
    DataCollatorForSeq2Seq,
    V2BatchSamplerDataCollatorForSeq2Seq,
)
from axolotl.utils.distributed import is_main_process
from axolotl.utils.logging import get_logger
from axolotl.utils.schemas.datasets import SFTDataset
from transformers.utils.generic import is_flash_attention_requested

from axolotl_distill.errors import ConfigError

LOG = get_logger(__name__)


def has_accelerator() -> bool:
    """Whether torch sees anything but the CPU."""
    return torch.accelerator.is_available()


def world_size() -> int:
    """Processes of this launch, before torch.distributed is initialised."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def shards_the_student() -> bool:
    """Whether FSDP or ZeRO-3 is to give each process a part of every weight. Known once the student
    was loaded, though not wrapped yet: Axolotl tells accelerate by these variables."""
    return (
        os.environ.get("ACCELERATE_USE_FSDP") == "true"
        or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    )


def finishes_tensor_parallelism() -> bool:
    """Whether this Axolotl makes DTensors of the weights that tensor parallelism leaves whole, and
    has all processes gather what is saved: from 0.20 on."""
    return find_spec("axolotl.monkeypatch.accelerate.tp") is not None


def tensor_parallel_ranks(accelerator: Any) -> int:
    """Processes that get the same batch, since each has a part of the student's layers."""
    parallelism = getattr(accelerator, "parallelism_config", None)
    return getattr(parallelism, "tp_size", None) or 1


def join_processes() -> None:
    """Have the processes of this launch meet, where Axolotl would have them do so later."""
    PartialState()


def local_processes() -> int:
    """Processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def quiet_other_ranks(name: str) -> None:
    """What the logger `name` and those below it warn of is said by the main process alone, as
    Axolotl's own loggers do."""
    if not is_main_process():
        logging.getLogger(name).setLevel(logging.ERROR)


def dataset_keys() -> set[str]:
    """Keys of a `datasets` entry that this Axolotl knows; it drops all others without a word."""
    return set(SFTDataset.model_fields)


def ask_around_reading(
    ask: Callable[[Any], object], look: Callable[[Any, Any, Any], object]
) -> None:
    """Have `ask(cfg)` called before Axolotl reads the datasets of a config: it asks plugins in
    training and in preprocessing; in `axolotl evaluate` it does not. And `look(cfg, training set,
    evaluation set or None)` once they are prepared, and no weight is read yet."""
    read = getattr(datasets.prepare_datasets, "of_axolotl", datasets.prepare_datasets)

    @wraps(read)
    def prepare_datasets(cfg: Any, *args: Any, **kwargs: Any) -> Any:
        ask(cfg)
        found = read(cfg, *args, **kwargs)
        look(cfg, found[0], found[1])
        return found

    setattr(prepare_datasets, "of_axolotl", read)  # noqa: B010 (mypy knows no such attribute)
    datasets.prepare_datasets = prepare_datasets


def base_collator(cfg: Any, is_eval: bool) -> dict[str, Any]:
    """What TeacherCollator needs to know of the collator that Axolotl would use without a plugin:
    its class as `base_cls`, whether it is `packed`, and its options.

    Axolotl asks a plugin for a class before it makes its own choice and offers no way to call
    that choice, so it is repeated here: follows HFCausalTrainerBuilder.build_collator.
    """
    packed = bool(cfg.eval_sample_packing if is_eval else cfg.sample_packing)
    if not packed:
        return {"base_cls": DataCollatorForSeq2Seq, "packed": False}
    isolates_by_mask = (
        cfg.attn_implementation == "flex_attention"
        or cfg.model_config_type in SUPPORTED_MULTIPACK_MODEL_TYPES
        or (cfg.model_config_type == "llama" and cfg.attn_implementation != "flash_attention_2")
    )
    if isolates_by_mask:
        cls = V2BatchSamplerDataCollatorForSeq2Seq
    else:
        cls = BatchSamplerDataCollatorForSeq2Seq
    found = {"base_cls": cls, "packed": True}
    if _emits_document_bounds(cfg):
        found["emit_fa_varlen_kwargs"] = True
    return found


def _emits_document_bounds(cfg: Any) -> bool:
    """Whether packed batches bring the bounds of their documents, so that flash attention need not
    find them again in every layer: from 0.21 on, where nothing cuts a batch along its rows."""
    dispatches = (cfg.accelerator_config or {}).get("dispatch_batches")
    if dispatches is None:
        dispatches = bool(cfg.streaming or cfg.pretraining_dataset)
    return (
        "emit_fa_varlen_kwargs" in {field.name for field in fields(DataCollatorForSeq2Seq)}
        and is_flash_attention_requested(requested_attention_implementation=cfg.attn_implementation)
        and cfg.fa_varlen_kwargs_in_collator is not False
        and cfg.model_config_type in SUPPORTED_MULTIPACK_MODEL_TYPES
        and not dispatches
    )


def prepare_cpu_launch(cfg: Any) -> None:
    """Several processes on a CPU crash on Axolotl's default device_map, and on a checkpoint, which
    torch loads to "cpu" and not to the "cpu:0" that accelerate says; to be called before it is
    asked."""
    if not has_accelerator() and world_size() > 1:
        cfg.device_map = None
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")


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
