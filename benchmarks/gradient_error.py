"""How far each kind of store bends the gradient, at how many bytes a token.

    python benchmarks/gradient_error.py

Teacher: SmolLM2-135M-Instruct. Student: the same with 5 of its 30 layers cut out. Two texts of
2,048 tokens: essays that the teacher writes (seeded), and the docstrings of the demo, which are
harder. The yardstick is the gradient of the output head's weight under forward KL over the whole
vocabulary of 49,152; records go through the store's own encoding, so quantisation counts. "Teacher
renormalised" is what peers do: the teacher is scaled to sum to one over its top K, the student is
not.

This does not rank records: noise averages out over a training and a bias stays. quality.py asks
the students.
"""

import json
from pathlib import Path

import torch
from common import keep
from distill_kernels import DistillSpec, SparseTeacher, fused_linear_distill
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.capture.records import make_records
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.store.payloads import Shape, distribution_of

ROOT = Path(__file__).resolve().parent.parent
TEACHER, STUDENT = ROOT / ".cache/smollm2", ROOT / ".cache/smollm2-cut5"
TOKENS, WINDOW = 2048, 512
SUBJECTS = (
    "a lighthouse keeper's winter",
    "how bread is made",
    "the first railway in a small country",
    "why leaves change colour",
    "a quarrel between two neighbours",
    "the history of the bicycle",
    "a night at sea",
    "what a good teacher does",
)
PLANS = (
    ("top-16, teacher renormalised", {"k": 16}, "peers"),
    ("top-64, teacher renormalised", {"k": 64}, "peers"),
    ("top-64, both renormalised", {"k": 64}, "renormalize"),
    ("sampled, 8 draws", {"draws": 8}, "sampled"),
    ("sampled, 16 draws", {"draws": 16}, "sampled"),
    ("top-16 + tail bucket", {"k": 16}, "tail_bucket"),
    ("top-64 + tail bucket", {"k": 64}, "tail_bucket"),
    ("nucleus 0.9 of at most 64", {"method": "nucleus", "p": 0.9, "max_k": 64}, "tail_bucket"),
)


@torch.inference_mode()
def essays(tokenizer) -> torch.Tensor:
    """What the teacher writes about eight subjects, int64 [8, TOKENS / 8]."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.bfloat16).eval()
    tokenizer.padding_side = "left"
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": f"Write an essay about {about}."}] for about in SUBJECTS],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
    )
    length = TOKENS // len(SUBJECTS)
    sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0}
    written = model.generate(**prompts, max_new_tokens=length, min_new_tokens=length, **sampling)
    return written[:, -length:].clone()


def docstrings(tokenizer) -> torch.Tensor:
    """int64 [TOKENS / WINDOW, WINDOW]"""
    lines = (ROOT / ".cache/pydoc-chat/train.jsonl").read_text().splitlines()
    messages = (m for line in lines for m in json.loads(line)["messages"])
    text = "\n\n".join(m["content"] for m in messages if m["role"] == "assistant")
    return torch.tensor(tokenizer(text)["input_ids"][:TOKENS]).view(-1, WINDOW)


def hidden_and_head(path: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    return hidden.clone(), model.lm_head.weight.detach()


def full_gradient(student, weight, teacher_logits, temperature) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    for rows in torch.arange(TOKENS).split(256):
        q = (student[rows] @ weight.t() / temperature).log_softmax(-1)
        p = (teacher_logits[rows] / temperature).log_softmax(-1)
        loss = F.kl_div(q, p, log_target=True, reduction="sum") * temperature**2 / TOKENS
        loss.backward()
    return weight.grad


def sparse_gradient(student, weight, teacher_logits, temperature, values, support):
    """(gradient, bytes a token)"""
    sampled = support == "sampled"
    at = {"sampling_temperature": temperature} if sampled else {"temperatures": [1.0, temperature]}
    args = CaptureArgs(teacher="-", output="-", **values, **at)
    batch = make_records(teacher_logits, args, seed=1)
    lengths = torch.from_numpy(batch.lengths)
    entries = torch.full((TOKENS, int(lengths.max())), -1, dtype=torch.int32)
    inside = torch.arange(entries.shape[1]) < lengths[:, None]
    entries[inside] = torch.from_numpy(batch.entries.view("int32"))
    teacher = decode_entries(
        entries,
        vocab_size=teacher_logits.shape[-1],
        sampled=sampled,
        temperature=temperature,
        tail=None
        if sampled
        else torch.from_numpy(batch.tail[:, args.temperatures.index(temperature)]),
        entropy=torch.from_numpy(batch.entropy) if sampled else None,
    )
    if support == "peers":
        # Cross-entropy against the rescaled entries: weights that sum to one, no tail.
        logprobs = teacher.logprobs - teacher.logprobs.logsumexp(-1, keepdim=True)
        teacher, support = SparseTeacher(teacher.ids, logprobs), "sampled"
    weight = weight.clone().requires_grad_()
    spec = DistillSpec(temperature=temperature, support=support)
    labels = torch.zeros(TOKENS, dtype=torch.int64)
    fused_linear_distill(student, weight, teacher, labels, spec=spec).loss.backward()
    shape = Shape(teacher_logits.shape[-1], args.temperatures, TOKENS, len(batch.entries))
    stored = distribution_of(args).pack(batch, shape)
    return weight.grad, sum(array.nbytes for array in stored.values()) / TOKENS


def measure(ids: torch.Tensor, text: str) -> list[dict]:
    teacher, teacher_head = hidden_and_head(TEACHER, ids)
    student, weight = hidden_and_head(STUDENT, ids)
    teacher_logits = teacher @ teacher_head.t()
    results = []
    for temperature in (1.0, 2.0):
        exact = full_gradient(student, weight, teacher_logits, temperature)
        for name, values, support in PLANS:
            seen, size = sparse_gradient(
                student, weight, teacher_logits, temperature, values, support
            )
            error = ((seen - exact).norm() / exact.norm()).item()
            cosine = F.cosine_similarity(seen.flatten(), exact.flatten(), dim=0).item()
            results.append(
                {
                    "text": text,
                    "support": name,
                    "temperature": temperature,
                    "bytes_per_token": size,
                    "relative_error": error,
                    "cosine": cosine,
                }
            )
            print(f"{text:<12}{name:<31}{temperature:>4g}{size:>9.1f}{error:>12.3f}{cosine:>9.3f}")
    return results


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    print(f"{'text':<12}{'support':<31}{'T':>4}{'bytes':>9}{'rel. error':>12}{'cosine':>9}")
    results = [
        *measure(essays(tokenizer), "essays"),
        *measure(docstrings(tokenizer), "docstrings"),
    ]
    keep("gradient_error", results)


if __name__ == "__main__":
    main()
