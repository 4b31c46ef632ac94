"""A server that holds the student, asked for a fixed text and held against the trainer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.rollout.versions import Versions
from axolotl_distill.rollout.vllm import VLLM

Kind = TypeVar("Kind", bound=Versions)

WRITES = 24
"""Tokens that the server writes to the text, out of whatever caches it has."""
TIGHTEST = 0.002
"""Nats that are never too many."""
SLACK = 4.0
"""Of what the same weights differ by on both sides: others are rounded too."""
FEWER = 2.0
"""What is written has fewer tokens than the text, and their mean is as much noisier."""
TRIAL = 0.5
"""Nats by which trial weights move the log-probabilities at least."""


class Said(NamedTuple):
    """Log-probabilities in nats of the text ([S − 1]), and of tokens that were written to it."""

    text: np.ndarray
    ids: list[int]
    written: np.ndarray


class Gap(NamedTuple):
    """Means of the absolute differences between server and trainer, in nats."""

    text: float
    written: float
    most: float


@dataclass
class Held(Generic[Kind]):
    """Server and trainer, side by side. One process of a run has it.

    model      the trainer's; PEFT's where there is an adapter
    versions   the folder through which the server gets weights
    base       the name by which the server serves the base model
    text       ids of the fixed text, two or more
    as_reader  entered while the trainer's model is asked: no dropout, the trainer's precision
    say        told of what was found at the start
    """

    model: Any
    vllm: VLLM
    versions: Kind
    base: str
    text: Sequence[int]
    as_reader: Callable[[], AbstractContextManager[object]]
    say: Callable[[str], None] = lambda text: None
    bound: float = 0.0
    """Nats by which server and trainer may differ; known from the start on."""
    _args: OnPolicyArgs = field(default_factory=lambda: OnPolicyArgs.model_validate({}))

    def ask(self, name: str) -> Said:
        """What the server says under `name`. Raises ServerError."""
        # Scoring does not read the server's prefix cache; writing does, so it comes first.
        written = self.vllm.run(
            self.vllm.write(name, self.text, WRITES, stop=(), seed=0, args=self._args)
        )
        return Said(self.vllm.run(self.vllm.score(name, self.text)), written.ids, written.logprobs)

    def own(self, ids: Sequence[int]) -> np.ndarray:
        """[S − 1] as VLLM.score, from the trainer's model."""
        given = torch.tensor([list(ids)], device=self.model.device)
        with torch.no_grad(), self.as_reader():
            logits = self.model(input_ids=given, use_cache=False).logits[0]
        at = torch.arange(len(ids) - 1, device=logits.device)
        logprobs = logits.float().log_softmax(-1)[at, given[0, at + 1]]
        return logprobs.double().cpu().numpy()

    def bound_by(self, gap: Gap) -> float:
        """From which difference on one is no rounding, where `gap` is."""
        widest = SLACK * max(gap.text, gap.written / FEWER)
        return min(self.vllm.server.tolerance, max(TIGHTEST, widest))

    def is_rounding(self, gap: Gap) -> bool:
        """Whether `gap` is within the tolerance. One that is not a number is not."""
        tolerance = self.vllm.server.tolerance
        return gap.text <= tolerance and gap.written / FEWER <= tolerance

    @property
    def url(self) -> str:
        return self.vllm.server.base_url


def gap_between(said: Said, own: np.ndarray) -> Gap:
    """own  [S − 1 + written] of the text and what was written to it, by the trainer."""
    apart = np.abs(np.concatenate([said.text, said.written]) - own)
    at = len(said.text)
    return Gap(float(apart[:at].mean()), float(apart[at:].mean()), float(apart.max()))
