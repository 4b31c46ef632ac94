"""Records from what servers give: the likeliest tokens of each position, at T=1."""

import math
from collections.abc import Sequence

import numpy as np

from axolotl_distill.capture.tail import tails_from_top
from axolotl_distill.store import RecordBatch, encoding
from axolotl_distill.teachers.top import TopLogprobs


def records_from_top(
    top: TopLogprobs,
    *,
    temperatures: Sequence[float],
    vocab_size: int,
    p: float = math.inf,
) -> RecordBatch:
    """Every known token of each position, or the likeliest that hold `p` of the mass at T=1 (at
    least one). The tail is what they leave at T=1, and an estimate at other temperatures."""
    known_RK = np.isfinite(top.logprobs)
    probs_RK = np.exp(top.logprobs)
    kept_RK = known_RK & (probs_RK.cumsum(1) - probs_RK < p)
    kept_RK[:, 0] = True
    entries = encoding.encode_logprobs(top.ids[kept_RK], top.logprobs[kept_RK], vocab_size)
    tail = tails_from_top(top.logprobs, kept_RK, temperatures, vocab_size)
    return RecordBatch({"entries": entries, "tail": tail}, lengths=kept_RK.sum(1))
