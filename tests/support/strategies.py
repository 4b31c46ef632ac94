"""How a model is spread over processes, as a user writes it, for a student that has one Llama."""

from typing import Any

GLOBAL_BATCH = 6

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
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


def shared_by(processes: int) -> dict[str, int]:
    """The global batch, one row a micro-batch; one process takes it whole."""
    if processes == 1:
        return {"micro_batch_size": GLOBAL_BATCH, "gradient_accumulation_steps": 1}
    accumulation = GLOBAL_BATCH // processes
    return {"micro_batch_size": 1, "gradient_accumulation_steps": accumulation}
