"""How close students are to their teacher on held-out chats, over the whole vocabulary.

    python demo/evaluate.py TEACHER OUT.json NAME=STUDENT [NAME=STUDENT …]

For every supervised token (the assistant's): KL(teacher || student) at T=1 in nats, whether both
rank the same token first, and the student's cross-entropy on the text.
"""

import json
import math
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HELD_OUT = Path(__file__).resolve().parent.parent / ".cache" / "pydoc-chat" / "heldout.jsonl"
ROWS = 24


def chat_tokens(tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """(token ids, which of them the assistant wrote, the end of its turn included)."""
    ids: list[int] = []
    assistant: list[bool] = []
    for turn, message in enumerate(messages):
        is_answer = message["role"] == "assistant"
        until = tokenizer.apply_chat_template(
            messages[: turn + 1], add_generation_prompt=not is_answer, return_dict=False
        )
        until = until[: len(until) - 1] if is_answer else until
        assistant += [is_answer] * (len(until) - len(ids))
        ids = until
    return ids, assistant


def load(path: str):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.inference_mode()
def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()


def main(teacher_path: str, out: str, students: dict[str, str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_path)
    lines = HELD_OUT.read_text().splitlines()[:ROWS]
    chats = [chat_tokens(tokenizer, json.loads(line)["messages"]) for line in lines]
    teacher = load(teacher_path)
    wanted = []
    for ids, assistant in chats:
        rows = torch.tensor(assistant[1:])
        wanted.append((rows, torch.tensor(ids[1:])[rows], logits_of(teacher, ids)[rows]))
    results = {}
    for name, path in students.items():
        is_teacher = path == teacher_path
        student = teacher if is_teacher else load(path)
        kl = agree = ce = tokens = 0.0
        for (ids, _), (rows, targets, teacher_logits) in zip(chats, wanted, strict=True):
            logits = teacher_logits if is_teacher else logits_of(student, ids)[rows]
            q = logits.log_softmax(-1)
            p = teacher_logits.log_softmax(-1)
            kl += (p.exp() * (p - q)).sum().item()
            agree += (p.argmax(-1) == q.argmax(-1)).sum().item()
            ce -= q.gather(1, targets[:, None]).sum().item()
            tokens += targets.numel()
        results[name] = {
            "kl": kl / tokens,
            "top1_agreement": agree / tokens,
            "perplexity": math.exp(ce / tokens),
            "tokens": int(tokens),
        }
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], dict(part.split("=", 1) for part in sys.argv[3:]))
