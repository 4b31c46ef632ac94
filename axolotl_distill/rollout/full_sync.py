"""Gives a server all of the student's weights, and holds what it then says against the trainer.

A server that reads the weights of before once more, or passes over a tensor, says that all went
well; and it may go on from keys and values that older weights gave it. Neither shows but in the
numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from axolotl_distill.errors import ServerError
from axolotl_distill.rollout.checkpoints import LARGEST, SMALLEST, Checkpoints, trial_weights
from axolotl_distill.rollout.held import FEWER, TRIAL, Gap, Held, gap_between

TIED = (
    " A CPU build of vLLM keeps the head as it was where it is tied to the embeddings (seen in "
    "0.32): untie them in `base_model`, for the server too, or train an adapter."
)


@dataclass
class FullSync(Held[Checkpoints]):
    """Before each rollout. One process of a run does it; `model` has no adapter.

    One checkpoint lies in the folder while the server reads it, and none afterwards.
    """

    def __call__(self, step: int) -> tuple[str, Mapping[str, float]]:
        """Has the server read the weights as they are now, and checks them. Returns the name to
        ask for, and how far server and trainer are apart.

        Raises ServerError where the server does not take them, or answers otherwise than the
        trainer.
        """
        if self.bound == 0.0:
            self._start()
        self._send(f"step-{step}")
        gap = self.check(f"the weights before step {step}")
        return self.base, {"sync_gap": gap.text}

    def end(self) -> None:
        """The server keeps the weights that it has: those it had before are not this run's."""

    def check(self, what: str) -> Gap:
        """Raises ServerError where the server's model is not the trainer's as it is now."""
        gap, about = self._apart(what)
        about += f" Rounding explains {self.bound:.4f} and {self.bound * FEWER:.4f}."
        # A gap that is not a number, of weights that are none, is no small one.
        if not gap.text <= self.bound:
            tied = self.model.config.get_text_config().tie_word_embeddings
            raise ServerError(
                f"{about} Either it still has other weights, or it passed over some of these, or "
                "serves another architecture. Look at its log for what it did not load."
                f"{TIED if tied else ''}"
            )
        if not gap.written <= self.bound * FEWER:
            raise ServerError(
                f"{about} What it writes is not what it scores: its prefix cache has other "
                "weights' keys and values, or it samples from another distribution than the "
                "model's. Start it with `--no-enable-prefix-caching`, and without "
                "`--logprobs-mode`."
            )
        return gap

    def _apart(self, what: str) -> tuple[Gap, str]:
        said = self.ask(self.base)
        gap = gap_between(said, self.own([*self.text, *said.ids]))
        return gap, (
            f"With {what}, {self.url} and the trainer differ by {gap.text:.4f} nats a token on a "
            f"text of {len(self.text)} tokens (at most {gap.most:.3f}), and by {gap.written:.4f} "
            f"on {len(said.ids)} that the server wrote to it."
        )

    def _start(self) -> None:
        """What both sides differ by with the same weights is rounding, or the server is none of
        these weights; and weights that it had before tell nothing of what it reads: trial ones
        do."""
        for name in self.versions.others():
            self.versions.remove(name)
        self._send("first")
        gap, about = self._apart("the student's first weights")
        if not self.is_rounding(gap):
            raise ServerError(
                f"{about} `distill.on_policy.server.tolerance` is "
                f"{self.vllm.server.tolerance:g}. Serve the student's `base_model`, with the same "
                "tokenizer and unquantised. Where another precision is meant, raise `tolerance`: "
                "what is written is then not quite the student's own text."
            )
        self.bound = self.bound_by(gap)
        moved = self._trial(max(TRIAL, 5.0 * self.vllm.server.tolerance))
        self.say(
            f"axolotl-distill: {self.url} takes the student's weights: {gap.text:.5f} nats a token "
            f"from the trainer with the first, {moved.text:.5f} with trial ones; from "
            f"{self.bound:.4f} on a difference stops the run"
        )

    def _trial(self, wanted: float) -> Gap:
        """Raises ServerError where the server does not do with other weights what the trainer
        does."""
        own = self.own(self.text)
        for exponent in range(SMALLEST, LARGEST):
            with trial_weights(self.model, exponent):
                if not np.abs(self.own(self.text) - own).mean() >= wanted:
                    continue
                self._send("trial")
                return self.check(f"trial weights, which move it by {wanted:g} nats or more")
        raise ServerError(
            f"No trial weights moved the student's log-probabilities by {wanted:g} nats: are they "
            "numbers?"
        )

    def _send(self, version: str) -> None:
        name = self.versions.name(version)
        try:
            self.vllm.reload(self.versions.save(self.model, name))
        finally:
            self.versions.remove(name)
