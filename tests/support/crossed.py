"""A tiny student and a tiny teacher with another tokenizer, and chats for them."""

import json
from pathlib import Path
from typing import Any

import torch
from support.tokenizers import sentencepiece
from transformers import AutoConfig, AutoModelForCausalLM

CHATS = [
    ("Say hello in French.", "Bonjour ! Ça va ? — naïve façade 🙂"),
    ("What is 350 + 1024?", "350 + 1024 = 1374."),
    ("Write a function.", "def add(a, b):\n    return a + b\n\n\nprint(add(12, 7))"),
    ("Why?", "Because 12 is less than 35, and tomorrow is another day."),
    ("日本?", "日本語の文章です。"),
    ("Count.", "1, 2, 3, 10, 11, 12, 100, 101, 102"),
]


def write_chats(path: Path, chats: list[tuple[str, str]]) -> Path:
    rows = [
        {"messages": [
            {"role": "user", "content": user}, {"role": "assistant", "content": said},
        ]}
        for user, said in chats
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mistral_student(folder: Path) -> Path:
    """A tiny Llama that speaks Mistral's SentencePiece, with Mistral's template."""
    tokenizer = sentencepiece()
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def smollm2_teacher(folder: Path, tiny_model: Any) -> Path:
    """A tiny Llama that speaks SmolLM2's, none of whose tokens is below e^-32, which no record
    holds."""
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.1)
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
