"""The texts that students learn from: docstrings and the teacher's own, as streams of chats.

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
CHATS, BATCH, ANSWER = 256, 32, 224
IGNORE = -100


def text(name: str, cache: Path) -> dict[str, Tensor]:
    """`docstrings` or `teacher`: streams `train` and `heldout`, made once. Each is int64 [2, S]:
    the tokens, and what a position has to predict: the next token of an answer, else -100."""
    file = cache / f"text-{name}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        make = {"docstrings": _docstrings, "teacher": _teacher_writes}[name]
        made = {part: make(part) for part in ("train", "heldout")}
        torch.save(made, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)
    return torch.load(file)


def _questions_and_answers(part: str) -> list[list[dict[str, str]]]:
    """The first of every row."""
    lines = (ROWS / f"{part}.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][:2] for line in lines]


def _stream(chats: list[list[dict[str, str]]]) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    ids: list[int] = []
    targets: list[int] = []
    for chat in chats:
        asked = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert whole[: len(asked)] == asked, "a template writes the prompt of an answer alike"
        ids += whole
        targets += [IGNORE] * (len(asked) - 1) + whole[len(asked) :] + [IGNORE]
    return torch.tensor([ids, targets])


def _docstrings(part: str) -> Tensor:
    return _stream(_questions_and_answers(part))


@torch.inference_mode()
def _teacher_writes(part: str) -> Tensor:
    """What the teacher answers to the first question of every row, drawn at T = 1."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    chats = [chat[:1] for chat in _questions_and_answers(part)][:CHATS]
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
