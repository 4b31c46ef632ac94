"""How a model is spread over processes, as a user writes it, for a tiny Llama."""

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "example_configs/many-gpus"
SPREADS = (
    "fsdp_version",
    "fsdp_config",
    "deepspeed",
    "dp_replicate_size",
    "dp_shard_size",
    "gradient_checkpointing",
)

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
LORA_HEAD = {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]}


def fsdp2(**changes: Any) -> dict[str, Any]:
    block = {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    }
    return {"fsdp_version": 2, "fsdp_config": {**block, **changes}}


def zero(stage: int) -> dict[str, Any]:
    """Stage 3 with nothing kept gathered, as a model has it that does not fit."""
    block: dict[str, Any] = {"stage": stage}
    if stage == 3:
        block |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return {
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_optimization": block,
        }
    }


def example(name: str, **sizes: int) -> dict[str, Any]:
    """The keys of an example that spread a model, in fp32, on so many processes."""
    written = yaml.safe_load((EXAMPLES / f"{name}.yml").read_text())
    found = {key: written[key] for key in SPREADS if key in written} | sizes
    if "fsdp_config" in found:
        found["fsdp_config"]["transformer_layer_cls_to_wrap"] = "LlamaDecoderLayer"
    if "deepspeed" in found:
        del found["deepspeed"]["bf16"]
    return found


def shared_by(processes: int, rows: int) -> dict[str, int]:
    """A step's rows, each a micro-batch; one process takes them in one."""
    if processes == 1:
        return {"micro_batch_size": rows, "gradient_accumulation_steps": 1}
    return {"micro_batch_size": 1, "gradient_accumulation_steps": rows // processes}
