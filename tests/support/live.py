"""A live teacher and a student of a few tokens, batches for them, and the loss from their own
logits, document by document, by the formula in float64."""

from typing import Any

import numpy as np
import torch
from distill_kernels import DistillSpec
from support.kernel_cases import naive_divergence
from support.model_types import VOCAB, tiny

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import LogitsObjective
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary

IGNORE = -100
ALL = SharedVocabulary(size=VOCAB)


def another(model_type: str = "llama") -> Any:
    """A model that is not the student, for all its config."""
    model = tiny(model_type)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std())
    return model.eval()


def live(teacher: Any, temperature: float = 1.0, **changes: Any) -> LiveSignal:
    whole = ModelTeacher(teacher, "T", vocab_size=VOCAB)
    about = {"want": Want(unprojected=True), "support": "tail_bucket", "batched": True, **changes}
    return LiveSignal(whole, "T", ALL, temperature=temperature, **about)


def attach(model: Any, source: LiveSignal, **args: Any) -> None:
    given = DistillArgs(teacher="m", temperature=source.temperature, **args)
    spec = DistillSpec(
        divergence=given.divergence,
        temperature=given.temperature,
        alpha=given.alpha,
        beta=given.beta,
        support=source.support,
        reduction="sum",
    )
    attach_distill_forward(model, [LogitsObjective(spec, "torch")], source)


def texts(lengths: list[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Documents of which the first third is a prompt."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        ids = rng.integers(3, VOCAB, length).tolist()
        found.append({"input_ids": ids, "labels": [IGNORE] * (length // 3) + ids[length // 3 :]})
    return found


def packed(documents: list[dict[str, list[int]]], pad: int = 3) -> dict[str, torch.Tensor]:
    """[1, S], the documents one after another, numbered by the mask as Axolotl does it."""
    ids, targets, positions, mask = [], [], [], []
    for number, document in enumerate(documents, 1):
        size = len(document["input_ids"])
        ids += document["input_ids"]
        targets += [*document["labels"][1:], IGNORE]
        positions += range(size)
        mask += [number] * size
    ids, targets = ids + [0] * pad, targets + [IGNORE] * pad
    positions, mask = positions + list(range(pad)), mask + [0] * pad
    names = ("input_ids", "shift_labels", "position_ids", "attention_mask")
    return {
        name: torch.tensor([values])
        for name, values in zip(names, (ids, targets, positions, mask), strict=True)
    }


def padded(documents: list[dict[str, list[int]]], left: bool = False) -> dict[str, torch.Tensor]:
    """[B, S], a document a row."""
    longest = max(len(document["input_ids"]) for document in documents)
    batch = {
        "input_ids": torch.zeros(len(documents), longest, dtype=torch.int64),
        "shift_labels": torch.full((len(documents), longest), IGNORE),
        "attention_mask": torch.zeros(len(documents), longest, dtype=torch.int64),
    }
    for row, document in enumerate(documents):
        size = len(document["input_ids"])
        at = slice(longest - size, None) if left else slice(size)
        batch["input_ids"][row, at] = torch.tensor(document["input_ids"])
        batch["shift_labels"][row, at] = torch.tensor([*document["labels"][1:], IGNORE])
        batch["attention_mask"][row, at] = 1
    return batch


@torch.no_grad()
def by_formula(student: Any, teacher: Any, documents: list[Any], args: DistillArgs) -> float:
    """The mean loss of the learnt tokens."""
    losses = []
    for document in documents:
        ids = torch.tensor([document["input_ids"]])
        labels = torch.tensor(document["labels"])[1:]
        at = (labels != IGNORE).nonzero().flatten()
        q = student(input_ids=ids, use_cache=False).logits[0, at].double()
        p = teacher(input_ids=ids, use_cache=False).logits[0, at].double()
        ce = -q.log_softmax(-1).gather(1, labels[at, None])[:, 0]
        spec = DistillSpec(divergence=args.divergence, beta=args.beta)
        log_p, log_q = (x.div(args.temperature).log_softmax(-1) for x in (p, q))
        kd = torch.stack([naive_divergence(a, b, spec) for a, b in zip(log_p, log_q, strict=True)])
        losses.append((1 - args.alpha) * ce + args.alpha * args.temperature**2 * kd)
    return torch.cat(losses).mean().item()
