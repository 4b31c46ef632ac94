"""A tiny student and its batches, for tests that shard it over two processes."""

import torch
from distill_kernels import DistillSpec
from peft import LoraConfig, PeftModel, get_peft_model
from support.losses import Loss, shifted
from support.losses import attach as attach_loss
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB = 300


def student() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def adapted() -> PeftModel:
    """With an adapter on the head, both of whose matrices have a gradient."""
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], init_lora_weights=False
    )
    torch.manual_seed(1)
    return get_peft_model(student(), config)


def batch(rank: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    tokens = torch.randint(0, VOCAB, (2, 9 + rank), generator=g)
    entries = torch.randint(0, 2**22, (*tokens.shape, 1), generator=g, dtype=torch.int32)
    ids = torch.randint(0, VOCAB, (*tokens.shape, 1), generator=g, dtype=torch.int32)
    tail = torch.randint(-2000, 2000, tokens.shape, generator=g, dtype=torch.int16)
    made = {
        "input_ids": tokens,
        "labels": tokens.clone(),
        # ids of 300 tokens take 9 bits, so 23 are the value's
        "teacher_entries": (ids << 23) | entries,
        "teacher_tail": tail,
        "num_items_in_batch": 16 + 18,
    }
    return shifted(made)


def attach(model: LlamaForCausalLM) -> None:
    spec = DistillSpec(temperature=2.0, alpha=0.7, reduction="sum")
    attach_loss(model, Loss(spec, VOCAB))
