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
from students.texts import IGNORE

WINDOW = 480
TRAIN_WINDOWS, HELD_OUT_WINDOWS = 64, 8
LEARNING_RATE, WARM_UP, CLIP = 2e-4, 0.2, 1.0


@dataclass(frozen=True)
class Run:
    """One point of the grid. Step i of a seed sees the same tokens, whatever the kind.

    text         docstrings or teacher
    student      a folder beside the teacher's
    kind         of record, see records.py
    steps, epochs  the steps are spread over so many passes over the same tokens; a record is made
                 anew in every pass when `fresh`
    windows      of text in a step, each of some 310 answer tokens
    precision    of the student's layers while it learns: bf16 is autocast over weights of fp32;
                 its head, the loss and every score are fp32 in both
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
    windows: int = 3
    precision: str = "bf16"

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values()).replace("/", "_of_")

    @property
    def among(self) -> int:
        """The run's windows are drawn from so many, the first of the text."""
        return max(TRAIN_WINDOWS, self.steps // self.epochs * self.windows)


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
        if stream.shape[1] < windows * WINDOW:
            raise ValueError(
                f"the text has {stream.shape[1]} tokens, and {windows * WINDOW} were asked for"
            )
        self.inputs, self.targets = stream[:, : windows * WINDOW].view(2, windows, WINDOW)
        model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
        self.head = model.lm_head.weight.detach()
        with torch.no_grad():
            self.hidden = torch.cat([_hidden(model, part) for part in self.inputs.split(1)])

    def labels(self, window: int) -> Tensor:
        """The tokens [N] that a window's answers consist of."""
        targets = self.targets[window]
        return targets[targets != IGNORE]

    def logits(self, window: int) -> Tensor:
        """The teacher's logits [N, V] at the positions that predict them."""
        return self.hidden[window][self.targets[window] != IGNORE] @ self.head.t()

    def student_hidden(
        self, model: torch.nn.Module, window: int, precision: str = "fp32"
    ) -> Tensor:
        """Hidden states [N, D] in fp32 at the same positions."""
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = _hidden(model, self.inputs[window : window + 1])[0]
        return hidden[self.targets[window] != IGNORE].float()


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
    shuffled = torch.randperm(run.among, generator=shuffle)[: a_pass * run.windows]
    chosen = shuffled.view(a_pass, run.windows).tolist()
    sizes = []
    for step in range(run.steps):
        at, again = step % a_pass, step // a_pass if run.fresh else 0
        draw = (run.seed * 1009 + at) * 101 + again
        logits = torch.cat([lesson.logits(window) for window in chosen[at]])
        made = record(run.kind, logits, run.temperature, draw)
        sizes.append(made.bytes_a_token)
        hidden = torch.cat(
            [lesson.student_hidden(model, window, run.precision) for window in chosen[at]]
        )
        labels = torch.cat([lesson.labels(window) for window in chosen[at]])
        loss = made.loss(hidden, model.lm_head.weight, labels, run.alpha)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval(), sum(sizes) / len(sizes)


@torch.no_grad()
def score(model: torch.nn.Module, heldout: Lesson) -> Scores:
    kl = nll = agreed = 0.0
    count = 0
    for window in range(len(heldout.inputs)):
        log_p = heldout.logits(window).log_softmax(-1)
        hidden, labels = heldout.student_hidden(model, window), heldout.labels(window)
        log_q = (hidden @ model.lm_head.weight.t()).log_softmax(-1)
        kl += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
        nll += F.nll_loss(log_q, labels, reduction="sum").item()
        agreed += int((log_q.argmax(-1) == log_p.argmax(-1)).sum())
        count += labels.numel()
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
