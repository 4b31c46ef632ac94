"""What a config says of many devices, and whether the loss is known to be right there.

One process, DDP, FSDP2, ZeRO and tensor parallelism by itself are. What splits a sequence or the
experts over ranks is refused, and so is what shards the head so that it cannot be read. What is in
force once the trainer stands, whatever the config said, is looked at in `in_force.py`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from axolotl_distill.host.compat import world_size
from axolotl_distill.host.findings import Finding

SEQUENCE = "it cuts a sequence over ranks, and a token's next one may lie on another"
AUTOTP = "it puts layers of its own in the student's, the output head too, and the loss reads none"
EXPERTS = "no loss was held to a reference with experts on other ranks"
SPLITS = {
    "context_parallel_size": SEQUENCE,
    "sequence_parallel_degree": SEQUENCE,
    "context_parallel": SEQUENCE,
    "expert_parallel_size": EXPERTS,
}
NOT_SPLIT = ("cross_tokenizer", "hidden_states", "on_policy")
"""Keys of `distill:` that need more of the student than its loss."""
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
    yield from _tensor_parallel(cfg)
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


def _tensor_parallel(cfg: Any) -> Iterator[Finding]:
    """What `tensor_parallel_size` does not go with."""
    ways = _size(cfg.get("tensor_parallel_size"))
    if ways <= 1:
        return
    said = f"`tensor_parallel_size: {ways}` cannot be combined with"
    launched = world_size()
    if launched > 1 and launched != ways:
        yield Finding(
            "tensor_parallel_size",
            f"`tensor_parallel_size: {ways}` and {launched} processes do not go together:",
            "with `distill:` all of them are to hold one student, each a part of every layer.",
            f"Launch {ways} processes, or set `tensor_parallel_size: {launched}`.",
        )
    others = ("deepspeed", "fsdp_config", "fsdp", "dp_shard_size", "dp_replicate_size")
    for key in others:
        value = cfg.get(key)
        if value if key in others[:3] else _size(value) > 1:
            yield Finding(
                "tensor_parallel_size",
                f"{said} `{key}`:",
                "no loss of the two together was held to that of one process.",
                f"Remove one of the two keys; without `{key}`, launch {ways} processes.",
            )
    if cfg.get("adapter"):
        yield Finding(
            "tensor_parallel_size",
            f"{said} `adapter: {cfg.get('adapter')}`:",
            "PEFT makes the adapter by the size of the part of a weight that a process holds, so "
            "that each trains an adapter of its own, and one of them is saved.",
            "Remove one of the two keys; FSDP2 shards a student with an adapter.",
        )
    for key in ("load_in_4bit", "load_in_8bit"):
        if cfg.get(key) and not cfg.get("adapter"):
            yield Finding(
                "tensor_parallel_size",
                f"{said} `{key}`:",
                "no loss was held to that of one process with quantised weights in parts.",
                "Remove one of the two keys.",
            )
    for key in ("resume_from_checkpoint", "auto_resume_from_checkpoints"):
        if cfg.get(key):
            yield Finding(
                "tensor_parallel_size",
                f"{said} `{key}`:",
                "a checkpoint holds the optimizer's state of one of the processes, or none.",
                f"Remove `{key}`, and start from the checkpoint's weights as `base_model`.",
            )
    # YAML reads a bare `no` as false.
    if cfg.get("save_strategy") not in ("no", False) and not cfg.get("save_only_model"):
        yield Finding(
            "tensor_parallel_size",
            f"`tensor_parallel_size: {ways}` needs `save_only_model: true`:",
            "of the optimizer's state a checkpoint would hold one process's part.",
            "Add it; the weights are saved whole.",
        )
    block = cfg.get("distill") or {}
    for key in NOT_SPLIT:
        if isinstance(block, Mapping) and block.get(key):
            yield Finding(
                f"distill.{key}",
                f"{said} `distill.{key}`:",
                "it reads the student's logits or weights, of which each process holds a part.",
                "Remove one of the two keys.",
            )
    teacher = block.get("teacher") if isinstance(block, Mapping) else None
    if isinstance(teacher, Mapping) and (teacher.get("self") or teacher.get("ema")):
        yield Finding(
            "distill.teacher",
            f"{said} a teacher that is the student itself:",
            "its head would be read whole, and each process holds a part.",
            "Name a teacher's `model`, or a store.",
        )


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
        yield "deepspeed.tensor_parallel.autotp_size", _size(size), AUTOTP


def _size(value: Any) -> int:
    """Of 2, "2" or {size: 2}; 1 where nothing is said, or nothing that Axolotl would take."""
    if isinstance(value, Mapping):
        value = value.get("size")
    try:
        return int(value or 1)
    except (TypeError, ValueError):
        return 1
