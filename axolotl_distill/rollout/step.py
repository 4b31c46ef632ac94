"""What a step learns from: the data, or what the student or the teacher makes of its prompts."""

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.objectives.metrics import MetricSums
from axolotl_distill.rollout.evaluate import OwnText
from axolotl_distill.rollout.keeper import Keeper
from axolotl_distill.rollout.repack import Batch, Collate, Prompt, prompts_of, repacked
from axolotl_distill.rollout.writer import Author, Completion
from axolotl_distill.show import foreign

SHOWN = 400
"""Characters of a prompt's end, and of a completion"""
OF_OWN_TEXT = ("kl", "kd", "entropy", "top1_agreement", "overlap")


def is_of_own_text(name: str) -> bool:
    """Whether a metric of the loss is logged of the student's own text too: of all of it, or of
    what one of several teachers grades, as `kl/NAME`."""
    return name.partition("/")[0] in OF_OWN_TEXT


class Sample(NamedTuple):
    """A completion to be shown: the end of its prompt, and its beginning."""

    step: int
    tokens: int
    end: str
    prompt: str
    completion: str


@dataclass
class OnPolicy:
    """Replaces the micro-batches of a step.

    What a step learns from follows from its number and `seed` alone, and so is the same on all
    ranks; what is written, from these, the rank and the weights.

    student, teacher  who write; the teacher with `seq_kd` only
    collate           makes a micro-batch of rows, as the data's are made
    packed            whether these rows are lists of documents
    decode            ids to text, for what is shown
    warn              told once of what is left out
    device            where sums are added up
    """

    args: OnPolicyArgs
    student: Author
    teacher: Author | None
    collate: Collate
    packed: bool
    sequence_len: int
    seed: int
    rank: int
    decode: Callable[[list[int]], str]
    warn: Callable[[str], None]
    device: torch.device
    evaluation: OwnText | None = None
    """What an evaluation has the student write."""
    keeper: Keeper | None = None
    """Keeps what the student writes, while it trains."""
    teacher_seconds: Callable[[], float] = lambda: 0.0
    """How long the teacher took so far, of the updates."""
    samples: list[Sample] = field(default_factory=list)
    """Some of what the student wrote last, on the first rank."""
    own_text: bool = False
    """Whether the step under way learns from the student's own text."""
    _sums: MetricSums = field(default_factory=MetricSums)
    _own: MetricSums = field(default_factory=MetricSums)
    _times: MetricSums = field(default_factory=MetricSums)
    _said: bool = False
    _returned: float | None = None
    _graded: float = 0.0

    def replace(self, batches: list[Batch], step: int) -> list[Batch]:
        """The micro-batches of optimizer step `step`: these, or as many others."""
        began = time.perf_counter()
        update = None if self._returned is None else began - self._returned
        graded = self.teacher_seconds() - self._graded
        self._graded += graded
        self.own_text = random.Random(f"{self.seed} {step}").random() < self.args.lmbda
        author = self.student if self.own_text else self.teacher
        if author is not None:
            batches = self._written(batches, step, author)
        self._returned = time.perf_counter()
        self._count(self._returned - began, graded, update)
        return batches

    def _written(self, batches: list[Batch], step: int, author: Author) -> list[Batch]:
        # Before anything that may differ from rank to rank: a server is prepared by all of them.
        found = author.prepare(step)
        prompts = prompts_of(batches)
        asked = [prompt for prompt in prompts if len(prompt.ids) < author.context]
        if len(asked) < len(prompts) and not self._said:
            self._said = True
            self.warn(
                f"axolotl-distill: step {step} has {len(prompts) - len(asked)} prompts as long as "
                f"`sequence_len: {author.context}`, which leave no room for an answer; these and "
                "others like them are left out, and no more is said of them. Raise it, or take "
                "such rows out."
            )
        completions = author.write([p.ids for p in asked], self._seed(step))
        written = list(zip(asked, completions, strict=True))
        if author is self.student:
            self._keep_samples(written, step)
        if self.args.truncated == "drop":
            kept = [(prompt, completion) for prompt, completion in written if completion.finished]
        else:
            kept = written
        made, placed = repacked(
            batches, kept, self.collate, packed=self.packed, sequence_len=self.sequence_len
        )
        if author is self.student:
            self._measure(completions, len(kept) - len(placed), found)
            if self.keeper is not None:
                self.keeper.expect(step, placed)
        return made

    def saw(self, metrics: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """What the loss of a micro-batch of the step under way was made of."""
        if self.own_text:
            self._own.add({name: metrics[name] for name in metrics if is_of_own_text(name)})

    def logs(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call. All ranks must call it."""
        means: dict[str, float] = {}
        for sums in (self._sums, self._own, self._times):
            means |= sums.means(accelerator)
        return {f"rollout/{name}": value for name, value in means.items()}

    def _seed(self, step: int) -> int:
        named = f"{self.seed} {step} {self.rank}".encode()
        return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 1

    def _measure(
        self, completions: list[Completion], left_out: int, found: Mapping[str, float]
    ) -> None:
        written = len(completions)
        self._sums.add(
            {
                "length": self._pair(sum(len(c.ids) for c in completions), written),
                "truncated": self._pair(sum(not c.finished for c in completions), written),
                "left_out": self._pair(left_out, written),
                **{name: self._pair(value, 1) for name, value in found.items()},
            }
        )

    def _count(self, seconds: float, graded: float, update: float | None) -> None:
        """The teacher answers within the update before this rollout; the first has none."""
        known = update is not None
        graded = min(graded, update or 0.0)
        parts = {"": seconds, "teacher_": graded, "update_": (update or 0.0) - graded}
        whole = seconds + update if update is not None else 0.0
        self._times.add(
            {
                "own_text": self._pair(self.own_text, 1),
                "seconds": self._pair(seconds, 1),
                "teacher_seconds": self._pair(graded, known),
                "update_seconds": self._pair(parts["update_"], known),
                **{f"{name}share": self._pair(part, whole) for name, part in parts.items()},
            }
        )

    def _pair(self, total: float, count: float) -> tuple[Tensor, Tensor]:
        one, other = torch.tensor([total, count], dtype=torch.float32, device=self.device)
        return one, other

    def _keep_samples(self, written: list[tuple[Prompt, Completion]], step: int) -> None:
        if self.rank != 0:
            return
        self.samples = [
            Sample(
                step,
                len(completion.ids),
                "finished" if completion.finished else "cut off",
                f"…{foreign(self.decode(prompt.ids)[-SHOWN:])}",
                foreign(self.decode(completion.ids)[:SHOWN]),
            )
            for prompt, completion in written[: self.args.samples]
        ]

    def table(self) -> str:
        """The samples, one a line; empty where there is none."""
        rows = [Sample._fields, *([str(value) for value in sample] for sample in self.samples)]
        if not self.samples:
            return ""
        width = [max(len(row[at]) for row in rows) for at in range(len(Sample._fields))]
        lines = [
            " | ".join(value.ljust(size) for value, size in zip(row, width, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join(["axolotl-distill: what the student wrote", *lines])
