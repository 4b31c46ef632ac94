"""One student: trained on some tokens with some record of its teacher, then held to the teacher."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from students.records import record

WINDOW, WINDOWS_A_STEP = 480, 2
HELD_OUT_WINDOWS = 6
LEARNING_RATE, WARM_UP, CLIP = 2e-4, 0.2, 1.0


@dataclass(frozen=True)
class Run:
    """One point of the grid. Equal tokens: step i of a seed sees the same ones, whatever the kind.

    text         docstrings or teacher
    student      a folder beside the teacher's
    kind         of record, see records.py
    steps, epochs  the steps are spread over so many passes over the same tokens; a record is made
                 anew in every pass when `fresh`
    """

    text: str
    student: str
    kind: str
    temperature: float
    seed: int
    steps: int = 16
    epochs: int = 1
    fresh: bool = False
    alpha: float = 0.9

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values()).replace("/", "_of_")


@dataclass(frozen=True)
class Scores:
    """Of a student on held-out tokens."""

    kl: float
    """KL(teacher || student) over the whole vocabulary, nats a token, at T = 1"""
    top1_agreement: float
    perplexity: float


class Lesson:
    """A text as its teacher reads it: windows, and the hidden states behind its logits."""

    def __init__(self, stream: Tensor, teacher: Path, windows: int):
        wanted = windows * WINDOW + 1
        if len(stream) < wanted:
            raise ValueError(f"the text has {len(stream)} tokens, and {wanted} were asked for")
        self.inputs = stream[: wanted - 1].view(windows, WINDOW)
        self.labels = stream[1:wanted].view(windows, WINDOW)
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
        self.head = model.lm_head.weight.detach()
        with torch.no_grad():
            self.hidden = torch.cat([_hidden(model, part) for part in self.inputs.split(2)])

    def logits(self, windows: Tensor) -> Tensor:
        """The teacher's logits [N, V] of some windows."""
        return self.hidden[windows].flatten(0, 1) @ self.head.t()


def _hidden(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model.model(input_ids=ids, use_cache=False).last_hidden_state


def train(run: Run, lesson: Lesson, student: Path) -> tuple[torch.nn.Module, float]:
    """(the student, the mean bytes a token of what it learned from)"""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    warm = max(1, round(WARM_UP * run.steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, run.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    shuffle = torch.Generator().manual_seed(run.seed)
    a_pass = run.steps // run.epochs
    chosen = torch.randperm(len(lesson.inputs), generator=shuffle)[: a_pass * WINDOWS_A_STEP]
    sizes = []
    for step in range(run.steps):
        at, again = step % a_pass, step // a_pass if run.fresh else 0
        windows = chosen.view(a_pass, WINDOWS_A_STEP)[at]
        labels = lesson.labels[windows].flatten()
        draw = (run.seed * 1009 + at) * 101 + again
        made = record(run.kind, lesson.logits(windows), run.temperature, draw)
        sizes.append(made.bytes_a_token)
        hidden = _hidden(model, lesson.inputs[windows]).flatten(0, 1)
        weight = model.lm_head.weight
        loss = made.loss(hidden, weight, labels, run.alpha)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), sum(sizes) / len(sizes)


@torch.no_grad()
def score(model: torch.nn.Module, heldout: Lesson) -> Scores:
    kl = nll = agreed = 0.0
    for window in range(len(heldout.inputs)):
        windows = torch.tensor([window])
        log_p = heldout.logits(windows).log_softmax(-1)
        hidden = _hidden(model, heldout.inputs[windows]).flatten(0, 1)
        log_q = (hidden @ model.lm_head.weight.t()).log_softmax(-1)
        kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
        nll += F.nll_loss(log_q, heldout.labels[window], reduction="sum").item()
        agreed += (log_q.argmax(-1) == log_p.argmax(-1)).sum().item()
    count = heldout.labels.numel()
    return Scores(kl / count, agreed / count, math.exp(nll / count))


def measure(run: Run, lesson: Lesson, heldout: Lesson, student: Path) -> dict:
    start = time.perf_counter()
    model, size = train(run, lesson, student)
    scores = score(model, heldout)
    return {
        **asdict(run),
        "bytes_a_token": size,
        **asdict(scores),
        "seconds": time.perf_counter() - start,
    }
