"""Gives a server the student's adapter, and holds what it then says against what the trainer says.

A server takes an adapter whose weights have names it does not know, says that all went well, and
answers as the base model; with a name that it had before, it may answer out of a cache of older
weights. Neither shows but in the numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.rollout.adapters import LARGEST, SMALLEST, Adapters, trial_adapter
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.teachers.itself import adapters_off

WRITES = 24
"""Tokens that the server writes to the text, out of whatever caches it has."""
TIGHTEST = 0.002
"""Nats that are never too many."""
SLACK = 4.0
"""Of what base models differ by: an adapter is rounded too."""
FEWER = 2.0
"""What is written has fewer tokens than the text, and their mean is as much noisier."""
TELLS = 3.0
"""Times the rounding, from which on a move of the adapter's is one."""
TRIAL = 0.5
"""Nats by which a trial adapter moves the log-probabilities at least."""


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
class Sync:
    """Before each rollout. One process of a run does it.

    model      PEFT's, the trainer's
    base       the name by which the server serves the base model
    text       ids of the fixed text, two or more
    as_reader  entered while the trainer's model is asked: no dropout, the trainer's precision
    say        told of what was found at the start
    """

    model: Any
    vllm: VLLM
    adapters: Adapters
    base: str
    text: Sequence[int]
    as_reader: Callable[[], AbstractContextManager[object]]
    say: Callable[[str], None] = lambda text: None
    name: str | None = None
    """Of the version that the server has."""
    bound: float = 0.0
    """Nats by which server and trainer may differ; known from the start on."""
    _base: tuple[Said, np.ndarray] | None = None
    _args: OnPolicyArgs = field(default_factory=lambda: OnPolicyArgs.model_validate({}))

    def __call__(self, step: int) -> tuple[str, Mapping[str, float]]:
        """Loads the adapter as it is now, checks it, and unloads the one before. Returns the name
        to ask for, and how far server and trainer are apart.

        Raises ServerError where the server does not take it, or answers otherwise than the trainer.
        """
        if self._base is None:
            self._start()
        name = self.adapters.name(f"step-{step}")
        self.vllm.load(name, self.adapters.save(self.model, name))
        before, self.name = self.name, name
        gap = self.check(name, f"the adapter before step {step}")
        if before is not None:
            self._drop(before)
        return name, {"sync_gap": gap.text}

    def end(self) -> None:
        """The server forgets the adapter."""
        if self.name is not None:
            self._drop(self.name)
            self.name = None

    def check(self, name: str, what: str) -> Gap:
        """Raises ServerError where `name` on the server is not the trainer's model as it is now."""
        assert self._base is not None
        said, (base_said, base_own) = self._ask(name), self._base
        own = self._own([*self.text, *said.ids])
        gap = _gap(said, own)
        at = len(self.text) - 1
        here = float(np.abs(own[:at] - base_own[:at]).mean())
        there = float(np.abs(said.text - base_said.text).mean())
        about = (
            f"With {what}, {self._url} and the trainer differ by {gap.text:.4f} nats a token on a "
            f"text of {at + 1} tokens (at most {gap.most:.3f}), and by {gap.written:.4f} on "
            f"{len(said.ids)} that the server wrote to it; rounding explains {self.bound:.4f} and "
            f"{self.bound * FEWER:.4f}. The adapter moves the trainer's log-probabilities by "
            f"{here:.4f} nats, and the server's by {there:.4f}."
        )
        if here > TELLS * self.bound / SLACK and there < here / SLACK:
            raise ServerError(
                f"{about} The server answers as its base model does. It does not know the adapter's"
                " weights by their names (another architecture, or a wrapper around it, such as "
                "that of a model of text and images), or serves the base model under this name."
            )
        # A gap that is not a number, of weights that are none, is no small one.
        if not gap.text <= self.bound:
            raise ServerError(
                f"{about} Either it does not take all modules of the adapter or scales them "
                "otherwise, or it has an adapter of another step, or its base model or tokenizer "
                "is another. Look at the server's log for what it ignored."
            )
        if not gap.written <= self.bound * FEWER:
            raise ServerError(
                f"{about} What it writes is not what it scores: its prefix cache has another "
                "adapter's keys and values, or it samples from another distribution than the "
                "model's. Start it with `--no-enable-prefix-caching`, and without "
                "`--logprobs-mode`."
            )
        return gap

    def _start(self) -> None:
        """What the base models differ by is rounding, or they are two; and an adapter that is zero,
        as a new one is, tells nothing: a trial one is not."""
        for name in self.adapters.others():
            self.vllm.unload(name)
            self.adapters.remove(name)
        said = self._ask(self.base)
        with adapters_off(self.model):
            own = self._own([*self.text, *said.ids])
        gap, tolerance = _gap(said, own), self.vllm.server.tolerance
        if not (gap.text <= tolerance and gap.written / FEWER <= tolerance):
            raise ServerError(
                f"`{self.base}` of {self._url} is not the student's base model: with the adapter "
                f"off they differ by {gap.text:.4f} nats a token on a text of {len(self.text)} "
                f"tokens (at most {gap.most:.3f}), and by {gap.written:.4f} on {len(said.ids)} "
                f"that the server wrote; `distill.on_policy.server.tolerance` is {tolerance:g}. "
                "Serve the same checkpoint, with the same tokenizer and in the same precision: a "
                "student with `load_in_4bit` goes with `--quantization bitsandbytes`. Where "
                "another precision is meant, raise `tolerance`: what is written is then not quite "
                "the student's own text."
            )
        self._base = said, own
        self.bound = min(tolerance, max(TIGHTEST, SLACK * max(gap.text, gap.written / FEWER)))
        moved = self._trial(max(TRIAL, 5.0 * tolerance))
        self.say(
            f"axolotl-distill: {self._url} has the student: {gap.text:.5f} nats a token from the "
            f"trainer with the adapter off, {moved.text:.5f} with a trial adapter; from "
            f"{self.bound:.4f} on a difference stops the run"
        )

    def _trial(self, wanted: float) -> Gap:
        """Raises ServerError where the server does not do with a large adapter what the trainer
        does."""
        assert self._base is not None
        own = self._base[1][: len(self.text) - 1]
        name = self.adapters.name("trial")
        for exponent in range(SMALLEST, LARGEST):
            with trial_adapter(self.model, exponent):
                if np.abs(self._own(self.text) - own).mean() < wanted:
                    continue
                try:
                    self.vllm.load(name, self.adapters.save(self.model, name))
                    return self.check(name, "a trial adapter")
                finally:
                    self._drop(name)
        raise ServerError(
            f"No trial adapter of {self._url} moved the student's log-probabilities by "
            f"{wanted:g} nats: has the student an adapter that is on?"
        )

    def _drop(self, name: str) -> None:
        self.vllm.unload(name)
        self.adapters.remove(name)

    def _ask(self, name: str) -> Said:
        # Scoring does not read the server's prefix cache; writing does, so it comes first.
        written = self.vllm.run(
            self.vllm.write(name, self.text, WRITES, stop=(), seed=0, args=self._args)
        )
        return Said(self.vllm.run(self.vllm.score(name, self.text)), written.ids, written.logprobs)

    def _own(self, ids: Sequence[int]) -> np.ndarray:
        """[S − 1] as VLLM.score, from the trainer's model."""
        given = torch.tensor([list(ids)], device=self.model.device)
        with torch.no_grad(), self.as_reader():
            logits = self.model(input_ids=given, use_cache=False).logits[0]
        at = torch.arange(len(ids) - 1, device=logits.device)
        logprobs = logits.float().log_softmax(-1)[at, given[0, at + 1]]
        return logprobs.double().cpu().numpy()

    @property
    def _url(self) -> str:
        return self.vllm.server.base_url


def _gap(said: Said, own: np.ndarray) -> Gap:
    apart = np.abs(np.concatenate([said.text, said.written]) - own)
    at = len(said.text)
    return Gap(float(apart[:at].mean()), float(apart[at:].mean()), float(apart.max()))
