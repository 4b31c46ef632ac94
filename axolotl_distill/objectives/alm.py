"""Approximate likelihood matching: how likely each side finds the same piece of text."""

import math

import numpy as np
import torch
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor

from axolotl_distill.align import Pieces
from axolotl_distill.objectives.crossed import CrossObjective, log_probabilities, prefix_sums
from axolotl_distill.signal.signal import Pairs

LEAST = 1e-6
"""Of -ln p: a piece that is certain would have an infinite 1 - p beside it."""
ROWS = 256
SPACE = b" \t\r\n"


class ALMObjective(CrossObjective):
    """D = KL of (P, 1 - P) from (Q, 1 - Q)    (arXiv 2503.20083)

        P = p(piece)^(1/tau),   p(piece) the product over the teacher's tokens of it; Q the
        student's

    A piece is a span that both bound. With a threshold, a bound stays where the teacher begins a
    word or ends the turn next with at least that probability, and pieces are joined at the others:
    within a word, likelihoods of two tokenizations are not of one text. The end of an answer always
    stays. With one tokenizer on both sides D is the divergence of the token that came against all
    others.

    tau        from 1; larger, it tells apart pieces that are unlikely to both
    threshold  0 = every bound stays
    """

    name = "alm"

    def __init__(self, alpha: float, theirs: Pieces, *, tau: float, threshold: float):
        super().__init__(alpha)
        self.tau, self.threshold = tau, threshold
        begins = [not raw or raw[0] in SPACE for raw in theirs.bytes_of]
        self.begins = torch.tensor(begins)

    def settled(self, pairs: Pairs, teacher: Distribution) -> Pairs:
        """See CrossObjective."""
        if not self.threshold or not len(pairs):
            return pairs
        self.begins = self.begins.to(pairs.tokens.device)
        # What follows a span is said at the position of the next one's first token.
        following = torch.from_numpy(pairs.teacher[:, 1]).clamp_max(len(pairs.tokens) - 1)
        stays = []
        for start in range(0, len(pairs.tokens), ROWS):
            log = log_probabilities(teacher, slice(start, start + ROWS))
            stays.append(log.exp()[:, self.begins].sum(-1) >= self.threshold)
        kept = torch.cat(stays)[following.to(pairs.tokens.device)].cpu().numpy() | pairs.ends
        last = np.flatnonzero(kept)
        first = np.concatenate([[0], last + 1])[: len(last)]
        student, theirs = (
            np.stack([side[first, 0], side[last, 1]], 1) for side in (pairs.student, pairs.teacher)
        )
        return Pairs(student, theirs, pairs.ends[last], pairs.tokens)

    def distance(
        self, own: Tensor, own_log: Tensor, theirs: Tensor, their_log: Tensor, pairs: Pairs
    ) -> Tensor:
        """See CrossObjective."""
        q = prefix_sums(own_log, pairs.student, own, last=True)
        p = prefix_sums(their_log, pairs.teacher, theirs, last=True)
        return binary_kl(p, q, self.tau)


def binary_kl(p: Tensor, q: Tensor, tau: float) -> Tensor:
    """KL of (P, 1 - P) from (Q, 1 - Q), P = exp(p / tau) and Q = exp(q / tau), for ln's p and q."""
    p, q = (torch.clamp_max(log / tau, -LEAST) for log in (p, q))
    return p.exp() * (p - q) - torch.expm1(p) * (_log_rest(p) - _log_rest(q))


def _log_rest(log: Tensor) -> Tensor:
    """ln(1 - exp(log)), for log < 0."""
    near = log > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near, log, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, log)))
    return torch.where(near, close, far)
