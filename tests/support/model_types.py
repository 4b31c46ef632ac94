"""Tiny models of the causal-LM families that transformers builds from a few common values."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 96
VALUES = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "sliding_window": 8,
    "rotary_dim": 8,
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["num_attention_heads", "n_head"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], 4),
    **dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim"], 48),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim"], 48),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["head_dim", "q_lora_rank", "kv_lora_rank"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_d_head"], 8),
    **dict.fromkeys(["state_size", "mamba_d_state"], 4),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "moe_num_experts": 4,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "n_group": 1,
    "topk_group": 1,
}


LAYERS = ("num_hidden_layers", "n_layer", "decoder_layers", "encoder_layers")


def tiny(model_type: str, layers: int = 2, **others: object) -> PreTrainedModel:
    """The same model each time, fp32, without dropout, with a head that is not all but uniform.

    others: values of the config by name"""
    known = AutoConfig.for_model(model_type)
    given = {**VALUES, **dict.fromkeys(LAYERS, layers)}
    values = {name: value for name, value in given.items() if hasattr(known, name)} | others
    config = AutoConfig.for_model(model_type, **values)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(10.0)
    return model
