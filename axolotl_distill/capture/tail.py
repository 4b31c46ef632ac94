"""The tail of a record of which only the likeliest tokens are known. Pure numpy.

At T=1 the tail's mass m is what the known tokens leave, 1 − Σp. At another temperature it depends
on how m is spread over the other tokens, which is not known. It is taken to fall as a power of the
rank, as frequencies do by Zipf's law: the token of rank r > K has

    p(r) = p(K) · (r / K)^−s

It joins the last known token, and s ≥ 0 is solved for so that it holds the mass m. ADR 11 compares
this with other shapes, by measurement.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from axolotl_distill.store import encoding

NODES = 48
STEPS = 60
STEEPEST = 4096.0
# 1 − Σp of log-probabilities that went through float32 is good to about this much.
RESOLUTION = 1e-5

Shape = Callable[[np.ndarray, int], np.ndarray]
"""(ranks, size of the vocabulary) -> how far ln p has fallen there, but for factor and constant."""


def power_law(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """ln r"""
    return np.log(ranks)


def tails_from_top(
    logprobs_RK: np.ndarray,
    kept_RK: np.ndarray,
    temperatures: Sequence[float],
    vocab_size: int,
    shape: Shape = power_law,
) -> np.ndarray:
    """int16 log-odds [R, temperatures] of what lies outside the kept tokens.

    logprobs_RK   at T=1, likeliest first, -inf where a position has fewer than K
    kept_RK       which of them the record keeps: a first part of each row
    shape         how the unknown ones fall; see above

    Where 1 − Σp is below what the sum resolves (coarse log-probabilities may even sum to more than
    one) the tail falls on as the last known tokens do, and holds no more than could be missing.
    """
    lengths = np.isfinite(logprobs_RK).sum(1)
    columns = np.empty((len(logprobs_RK), len(temperatures)), dtype=np.int16)
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        known, kept = logprobs_RK[rows, :length], kept_RK[rows, :length]
        ranks, weights = rank_nodes(int(length), vocab_size)
        beyond = _beyond(known, ranks, np.log(weights), vocab_size, shape)
        for column, temperature in enumerate(temperatures):
            head = _logsumexp(np.where(kept, known / temperature, -np.inf))
            left_out = np.where(kept, -np.inf, known / temperature)
            rest = np.concatenate([left_out, beyond / temperature + np.log(weights)], axis=1)
            columns[rows, column] = encoding.encode_tail(_logsumexp(rest), head)
    return columns


@lru_cache(maxsize=256)
def rank_nodes(k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks k+1 … vocab_size as a few, each standing for so many: (ranks, weights), float64."""
    edges = np.unique(np.rint(np.geomspace(k + 1, vocab_size + 1, NODES)).astype(np.int64))
    weights = np.diff(edges).astype(np.float64)
    return edges[:-1] + (weights - 1) / 2, weights


def _beyond(
    known_RK: np.ndarray,
    ranks: np.ndarray,
    log_weights: np.ndarray,
    vocab_size: int,
    shape: Shape,
) -> np.ndarray:
    """ln p at T=1 of the tokens of `ranks`, float64 [R, ranks]."""
    length = known_RK.shape[1]
    if not ranks.size:
        return np.empty((len(known_RK), 0))
    depth = shape(np.array([max(1, length // 2), length, *ranks]), vocab_size)
    last_R = known_RK[:, -1]
    drop = depth[2:] - depth[1]
    left_R = -np.expm1(_logsumexp(known_RK))
    mass_R = np.log(np.maximum(np.abs(left_R), RESOLUTION))
    slope_R = _solve(mass_R - last_R, drop, log_weights)

    resolved_R = left_R >= RESOLUTION
    fall_R = (known_RK[:, max(1, length // 2) - 1] - last_R) / max(depth[1] - depth[0], 1e-9)
    slope_R = np.where(resolved_R, slope_R, np.maximum(slope_R, fall_R))
    beyond = last_R[:, None] - slope_R[:, None] * drop
    miss_R = mass_R - _logsumexp(beyond + log_weights)
    return beyond + np.where(resolved_R, miss_R, 0.0)[:, None]


def _solve(log_mass_R: np.ndarray, drop: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """The s at which Σ weight · exp(−s · drop) is the mass; by bisection, for it falls with s."""
    low, high = np.zeros_like(log_mass_R), np.full_like(log_mass_R, STEEPEST)
    for _ in range(STEPS):
        middle = 0.5 * (low + high)
        too_much = _logsumexp(log_weights - middle[:, None] * drop) > log_mass_R
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    return 0.5 * (low + high)


def _logsumexp(values_RN: np.ndarray) -> np.ndarray:
    if not values_RN.shape[1]:
        return np.full(len(values_RN), -np.inf)
    top = np.maximum(values_RN.max(1, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return top[:, 0] + np.log(np.exp(values_RN - top).sum(1))
