"""What a config says of many devices, and whether the loss is known to be right there.

One process and DDP are. What splits a sequence, a layer or the experts over ranks is refused, and
so is what shards the head so that it cannot be read. What is in force once the trainer stands,
whatever the config said, is looked at in `in_force.py`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl_distill.host.findings import Finding

SEQUENCE = "it cuts a sequence over ranks, and a token's next one may lie on another"
TENSOR = "it cuts the output head over ranks, and the loss needs all of a token's logits"
EXPERTS = "no loss was held to a reference with experts on other ranks"
SPLITS = {
    "context_parallel_size": SEQUENCE,
    "sequence_parallel_degree": SEQUENCE,
    "context_parallel": SEQUENCE,
    "tensor_parallel_size": TENSOR,
    "expert_parallel_size": EXPERTS,
}
WITH_DDP = (
    "Remove it, and train on several devices with DDP: `accelerate launch -m axolotl.cli.train "
    "CONFIG.yml`."
)
FSDP1 = (
    "FSDP1 flattens the weights, and the output head cannot be read outside its own forward.",
    "Set `fsdp_version: 2`, or leave FSDP out and train with DDP.",
)


def parallelism(cfg: Any) -> Iterator[Finding]:
    """Parallelism that gives a wrong loss or none.

    Works before Axolotl has validated the config, which renames and fills in keys, and after.
    """
    for key, ways, why in _splits(cfg):
        if ways > 1:
            yield Finding(
                key, f"`{key}: {ways}` cannot be combined with `distill:`:", f"{why}.", WITH_DDP
            )
    fsdp = cfg.get("fsdp_config") or {}
    version = cfg.get("fsdp_version") or fsdp.get("fsdp_version") or fsdp.get("version") or 1
    if (cfg.get("fsdp") or fsdp) and str(version) != "2":
        yield Finding(
            "fsdp_version",
            f"`fsdp_version: {version}` cannot be combined with `distill:`:",
            *FSDP1,
        )
    elif fsdp:
        yield from _unsaved(cfg, fsdp)


def sharding(cfg: Any) -> Iterator[str]:
    """The keys that leave each process a part of every weight: FSDP's, and DeepSpeed's unless it
    says a stage below 3."""
    yield from (key for key in ("fsdp_config", "fsdp") if cfg.get(key))
    if cfg.get("deepspeed") and _zero_stage(cfg.get("deepspeed")) not in (0, 1, 2):
        yield "deepspeed"


def _zero_stage(deepspeed: Any) -> Any:
    """None where it cannot be read."""
    if not isinstance(deepspeed, Mapping):
        try:
            deepspeed = json.loads(Path(str(deepspeed)).read_bytes())
        except (OSError, ValueError):
            return None
    zero = deepspeed.get("zero_optimization") if isinstance(deepspeed, Mapping) else None
    return zero.get("stage", 0) if isinstance(zero, Mapping) else None


def _unsaved(cfg: Any, fsdp: Mapping[str, Any]) -> Iterator[Finding]:
    """What FSDP2 trains and Axolotl does not save; all of it found after the last step."""
    if cfg.get("adapter"):
        if cfg.get("lora_modules_to_save"):
            yield Finding(
                "lora_modules_to_save",
                "`lora_modules_to_save` cannot be combined with FSDP2:",
                "Axolotl gathers the LoRA matrices alone, and ends in a KeyError without a model.",
                "Put LoRA on these modules (`lora_target_modules`), or use DeepSpeed ZeRO-3.",
            )
        if fsdp.get("activation_checkpointing"):
            yield Finding(
                "fsdp_config.activation_checkpointing",
                "`fsdp_config.activation_checkpointing` cannot be combined with an adapter:",
                "Axolotl saves its weights under the names of wrappers, and what loads the adapter "
                "finds none of them.",
                "Set `gradient_checkpointing: true` in its place.",
            )
        return
    final = fsdp.get("final_state_dict_type") or fsdp.get("state_dict_type")
    if final == "SHARDED_STATE_DICT":
        yield Finding(
            "fsdp_config.state_dict_type",
            "`fsdp_config.state_dict_type: SHARDED_STATE_DICT` may save another model than is "
            "trained:",
            "Axolotl makes it of a checkpoint, in bfloat16: the newest one, or the one resumed "
            "from.",
            "Add `final_state_dict_type: FULL_STATE_DICT`; checkpoints stay sharded.",
        )


def _splits(cfg: Any) -> Iterator[tuple[str, int, str]]:
    """(key, ranks that share something, why that does not work)"""
    for key, why in SPLITS.items():
        yield key, _size(cfg.get(key)), why
    deepspeed = cfg.get("deepspeed")
    if isinstance(deepspeed, Mapping):
        key = "sequence_parallel_size"
        yield f"deepspeed.{key}", _size(deepspeed.get(key)), SEQUENCE
        size = (deepspeed.get("tensor_parallel") or {}).get("autotp_size")
        yield "deepspeed.tensor_parallel.autotp_size", _size(size), TENSOR


def _size(value: Any) -> int:
    """Of 2, "2" or {size: 2}; 1 where nothing is said, or nothing that Axolotl would take."""
    if isinstance(value, Mapping):
        value = value.get("size")
    try:
        return int(value or 1)
    except (TypeError, ValueError):
        return 1
