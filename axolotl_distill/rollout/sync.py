"""Gives a server the student's adapter, and holds what it then says against what the trainer says.

A server takes an adapter whose weights have names it does not know, says that all went well, and
answers as the base model; with a name that it had before, it may answer out of a cache of older
weights. Neither shows but in the numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from axolotl_distill.errors import ServerError
from axolotl_distill.rollout.adapters import LARGEST, SMALLEST, Adapters, trial_adapter
from axolotl_distill.rollout.held import FEWER, SLACK, TRIAL, Gap, Held, Said, gap_between
from axolotl_distill.teachers.itself import adapters_off

TELLS = 3.0
"""Times the rounding, from which on a move of the adapter's is one."""


@dataclass
class Sync(Held[Adapters]):
    """Before each rollout. One process of a run does it; `model` is PEFT's."""

    name: str | None = None
    """Of the version that the server has."""
    _base: tuple[Said, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[str, Mapping[str, float]]:
        """Loads the adapter as it is now, checks it, and unloads the one before. Returns the name
        to ask for, and how far server and trainer are apart.

        Raises ServerError where the server does not take it, or answers otherwise than the trainer.
        """
        if self._base is None:
            self._start()
        name = self.versions.name(f"step-{step}")
        self.vllm.load(name, self.versions.save(self.model, name))
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
        said, (base_said, base_own) = self.ask(name), self._base
        own = self.own([*self.text, *said.ids])
        gap = gap_between(said, own)
        at = len(self.text) - 1
        here = float(np.abs(own[:at] - base_own[:at]).mean())
        there = float(np.abs(said.text - base_said.text).mean())
        about = (
            f"With {what}, {self.url} and the trainer differ by {gap.text:.4f} nats a token on a "
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
        for name in self.versions.others():
            self.vllm.unload(name)
            self.versions.remove(name)
        said = self.ask(self.base)
        with adapters_off(self.model):
            own = self.own([*self.text, *said.ids])
        gap = gap_between(said, own)
        if not self.is_rounding(gap):
            raise ServerError(
                f"`{self.base}` of {self.url} is not the student's base model: with the adapter "
                f"off they differ by {gap.text:.4f} nats a token on a text of {len(self.text)} "
                f"tokens (at most {gap.most:.3f}), and by {gap.written:.4f} on {len(said.ids)} "
                "that the server wrote; `distill.on_policy.server.tolerance` is "
                f"{self.vllm.server.tolerance:g}. Serve the same checkpoint, with the same "
                "tokenizer and in the same precision: a student with `load_in_4bit` goes with "
                "`--quantization bitsandbytes`. Where another precision is meant, raise "
                "`tolerance`: what is written is then not quite the student's own text."
            )
        self._base = said, own
        self.bound = self.bound_by(gap)
        moved = self._trial(max(TRIAL, 5.0 * self.vllm.server.tolerance))
        self.say(
            f"axolotl-distill: {self.url} has the student: {gap.text:.5f} nats a token from the "
            f"trainer with the adapter off, {moved.text:.5f} with a trial adapter; from "
            f"{self.bound:.4f} on a difference stops the run"
        )

    def _trial(self, wanted: float) -> Gap:
        """Raises ServerError where the server does not do with a large adapter what the trainer
        does."""
        assert self._base is not None
        own = self._base[1][: len(self.text) - 1]
        name = self.versions.name("trial")
        for exponent in range(SMALLEST, LARGEST):
            with trial_adapter(self.model, exponent):
                if np.abs(self.own(self.text) - own).mean() < wanted:
                    continue
                try:
                    self.vllm.load(name, self.versions.save(self.model, name))
                    return self.check(name, "a trial adapter")
                finally:
                    self._drop(name)
        raise ServerError(
            f"No trial adapter of {self.url} moved the student's log-probabilities by "
            f"{wanted:g} nats: has the student an adapter that is on?"
        )

    def _drop(self, name: str) -> None:
        self.vllm.unload(name)
        self.versions.remove(name)
