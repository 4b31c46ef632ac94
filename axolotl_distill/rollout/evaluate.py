"""The student's own text in an evaluation: the same prompts and draws every time."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from axolotl_distill.rollout.repack import Batch, Collate, prompts_of, repacked, silenced
from axolotl_distill.rollout.writer import Completion, Writer


@dataclass
class OwnText:
    """Has the student write for the first prompts of an evaluation set.

    What is drawn follows from `seed`, the rank and the place of a batch in the set, and not from
    the step: of two evaluations what differs is the student.

    most      completions of each process
    drop      those that end for want of room
    collate   makes a batch of rows, as those of the evaluation set are made
    written   in the last evaluation
    """

    student: Writer
    most: int
    drop: bool
    collate: Collate
    packed: bool
    sequence_len: int
    seed: int
    rank: int
    written: list[Completion] = field(default_factory=list)

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of `loader` with what the student writes for their prompts, until `most` are
        written. One for which it writes nothing has nothing learnt, so that every rank that has a
        batch has something to add up."""
        self.written = []
        for number, batch in enumerate(loader):
            prompts = [p for p in prompts_of([batch]) if len(p.ids) < self.student.context]
            prompts = prompts[: self.most - len(self.written)]
            if not prompts:
                yield silenced(batch)
                continue
            named = f"{self.seed} evaluation {number} {self.rank}".encode()
            drawn = int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 1
            completions = self.student.write([prompt.ids for prompt in prompts], drawn)
            self.written += completions
            kept = [
                (prompt, completion)
                for prompt, completion in zip(prompts, completions, strict=True)
                if completion.finished or not self.drop
            ]
            (made,), _ = repacked(
                *([batch], kept, self.collate), packed=self.packed, sequence_len=self.sequence_len
            )
            yield made
            if len(self.written) >= self.most:
                return

    def sizes(self, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the last evaluation, sums and what they are to be divided by."""
        totals = {
            "length": sum(len(completion.ids) for completion in self.written),
            "truncated": sum(not completion.finished for completion in self.written),
        }
        number = torch.tensor(float(len(self.written)), device=device)
        return {
            name: (torch.tensor(float(total), device=device), number)
            for name, total in totals.items()
        }
