"""At which temperature a server's log-probabilities are: found out from what it says of plain text.

A language model that was not tempered is about calibrated on plain prose: of p ∝ exp(a·log p), the
a that gives the text the highest likelihood is about 1. One whose logits were divided by T needs
about a = T.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from axolotl_distill.teachers.top import TopLogprobs

LIKELIEST = 16
"""Asked for of every position; no server refuses so few."""
LEAST_POSITIONS = 24
KNOWS = 0.75
"""Of ln(LIKELIEST): a text that costs more nats a token than this says nothing of the model."""
HONOURED = 0.05
"""Nats by which a log-probability moves where the temperature of a request counts."""
SCALES = np.exp(np.linspace(math.log(1 / 16), math.log(16), 257))

PROSE = (
    "The water cycle is the path that water follows as it moves around the Earth. The sun heats "
    "the water in the oceans, in rivers and in lakes, and some of it turns into vapour, which "
    "rises into the air. As the air rises it becomes colder, and the vapour turns back into "
    "tiny drops of water, which form clouds. When the drops become too heavy, they fall to the "
    "ground as rain or snow. Some of the rain flows into rivers and back to the sea, and some "
    "of it sinks into the ground. Plants take up water through their roots and give it back to "
    "the air through their leaves. One, two, three, four, five, six, seven, eight, nine, ten. "
    "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday."
)


class Reading(NamedTuple):
    """positions: those whose token is among the likeliest. nats: what such a token costs at the
    best scale, renormalised over them. scale: that a."""

    positions: int
    nats: float
    scale: float

    @property
    def is_telling(self) -> bool:
        return self.positions >= LEAST_POSITIONS and self.nats < KNOWS * math.log(LIKELIEST)


def reading(top: TopLogprobs, came: Sequence[int]) -> Reading:
    """How sharp a model's distributions are for a text.

    top   the likeliest tokens of R positions, [R, K]
    came  the token that came after each
    """
    is_own = top.ids == np.asarray(came)[:, None]
    rows = is_own.any(1)
    logprobs, own = top.logprobs[rows], top.logprobs[rows][is_own[rows]]
    if not own.size:
        return Reading(0, math.inf, 1.0)
    costs = [_logsumexp(scale * logprobs).mean() - scale * own.mean() for scale in SCALES]
    best = int(np.argmin(costs))
    return Reading(int(rows.sum()), float(costs[best]), float(SCALES[best]))


def contradicts(said: float, found: Reading) -> bool:
    """Whether a model that is said to be tempered with `said` reads as one that is not."""
    if said == 1.0 or not found.is_telling:
        return False
    return math.log(found.scale) / math.log(said) < 0.35


def seems_tempered(said: float, found: Reading) -> bool:
    """Whether a model reads as if it had been tempered otherwise than is said."""
    return found.is_telling and found.scale / said > 1.6


def _logsumexp(values_RK: np.ndarray) -> np.ndarray:
    most_R = values_RK.max(1)
    return most_R + np.log(np.exp(values_RK - most_R[:, None]).sum(1))
