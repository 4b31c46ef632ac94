"""The texts that students learn from, as streams of tokens: docstrings and the teacher's own.

Held-out tokens are of modules that no training text is about.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
TEACHER = ROOT / ".cache/smollm2"
ROWS = ROOT / ".cache/pydoc-chat"
BATCH, ANSWER = 32, 224


def text(name: str, cache: Path) -> dict[str, Tensor]:
    """`docstrings` or `teacher`: int64 streams `train` and `heldout`, made once."""
    file = cache / f"text-{name}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        make = {"docstrings": _docstrings, "teacher": _teacher_writes}[name]
        made = {part: make(part) for part in ("train", "heldout")}
        torch.save(made, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)
    return torch.load(file)


def _rows(part: str) -> list[list[dict[str, str]]]:
    lines = (ROWS / f"{part}.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"] for line in lines]


def _stream(chats: list[list[dict[str, str]]]) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    ids = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]
    return torch.tensor([token for chat in ids for token in chat])


def _docstrings(part: str) -> Tensor:
    return _stream(_rows(part))


@torch.inference_mode()
def _teacher_writes(part: str) -> Tensor:
    """What the teacher answers to the first question of every row, drawn at T = 1."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    chats = [[chat[0]] for chat in _rows(part)][:256]
    written = []
    for start in range(0, len(chats), BATCH):
        batch = chats[start : start + BATCH]
        prompts = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        out = model.generate(**prompts, max_new_tokens=ANSWER, do_sample=True, top_k=0, top_p=1.0)
        answers = tokenizer.batch_decode(
            out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )
        written += [
            [*chat, {"role": "assistant", "content": answer}]
            for chat, answer in zip(batch, answers, strict=True)
        ]
    return _stream(written)
