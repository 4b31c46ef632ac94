"""What a server says of a position: its likeliest tokens and nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NO_TOKEN = -1
# vLLM writes this where a probability is zero, for JSON has no infinity.
ZERO_PROBABILITY = -9999.0
# Above rounding: no rounding of a log-probability makes it larger.
ABOVE_ROUNDING = 0.05

Pairs = Sequence[tuple[int, float]]
"""(token id, log-probability in nats at T=1), in any order."""


@dataclass(frozen=True)
class TopLogprobs:
    """The likeliest tokens of R positions, likeliest first, at most K of each.

    ids int64 [R, K], -1 where a position has fewer; logprobs float64 [R, K], nats at T=1, -inf
    there. Every position has at least one.
    """

    ids: np.ndarray
    logprobs: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R]"""
        return (self.ids != NO_TOKEN).sum(1)


def top_logprobs(positions: Sequence[Pairs | None], *, k: int, vocab_size: int) -> TopLogprobs:
    """The k likeliest of each position.

    A token of probability zero is left out, and so is an id beyond the vocabulary: heads padded
    for speed have such ids, and no text does.

    Raises ValueError for a position with nothing left, for NaN, and for numbers that are no
    log-probabilities.
    """
    ids = np.full((len(positions), k), NO_TOKEN, dtype=np.int64)
    logprobs = np.full((len(positions), k), -np.inf)
    for row, pairs in enumerate(positions):
        kept = _likeliest(pairs or (), k, vocab_size)
        if not kept:
            raise ValueError(f"position {row} of {len(positions)} has no log-probabilities")
        ids[row, : len(kept)], logprobs[row, : len(kept)] = zip(*kept, strict=True)
    mass = np.exp(logprobs).sum(1).max(initial=0.0)
    if not mass <= 1.0 + ABOVE_ROUNDING:
        raise ValueError(
            f"the probabilities of one position sum to {mass:.4g}, so these are not "
            "log-probabilities. vLLM gives logits when started with `--logprobs-mode raw_logits`"
        )
    return TopLogprobs(ids, logprobs)


def _likeliest(pairs: Pairs, k: int, vocab_size: int) -> list[tuple[int, float]]:
    found: dict[int, float] = {}
    for token, logprob in pairs:
        if logprob is None or math.isnan(logprob):
            raise ValueError(f"token {token} has the log-probability {logprob}")
        if logprob > ZERO_PROBABILITY and 0 <= token < vocab_size:
            found[token] = min(logprob, 0.0) if logprob < ABOVE_ROUNDING else logprob
    return sorted(found.items(), key=lambda pair: -pair[1])[:k]
