"""GOLD: tokens that both vocabularies have are compared as such, the others by their order."""

import numpy as np
import torch
from torch import Tensor

from axolotl_distill.align import Pieces
from axolotl_distill.align.survey import Survey
from axolotl_distill.objectives.crossed import CrossObjective, prefix_sums
from axolotl_distill.objectives.uld import sorted_distance
from axolotl_distill.signal.signal import Pairs


class GoldObjective(CrossObjective):
    """D = a sum_m p(m) ln(p(m) / q(m)) + b sum_i |p_(i) - q_(i)|    (TRL's GOLD trainer)

    over tokens m that both have, and the others, each side's sorted and filled up with zeros. Of a
    span of several tokens p is the probability that it is written as it was up to its last token,
    and any token then:

        p(v) = p(t_1) · … · p(t_(n-1) | …) · p(v | t_1 … t_(n-1))

    TRL calls that merge "bayesian"; its default takes the first token's distribution times the
    others' probabilities, which is no token's probability. a is the share of the teacher's tokens
    that the student has too, and b what is left of 1, unless they are given. With one tokenizer on
    both sides D is KL(p ‖ q).

    theirs, own  the tokens of both
    weights      (a, b), or None
    """

    name = "gold"

    def __init__(
        self, alpha: float, theirs: Pieces, own: Pieces, weights: tuple[float, float] | None = None
    ):
        super().__init__(alpha)
        self.theirs, self.own, self.given = theirs, own, weights

    def settle(self, survey: Survey) -> None:
        """See CrossObjective: special tokens are known by their role in the text."""
        matched = alike_tokens(self.theirs, self.own, survey.ends)
        share = matched.shape[1] / len(self.theirs)
        self.weights = self.given or (share, 1.0 - share)
        self.their_ids, self.own_ids = torch.from_numpy(np.ascontiguousarray(matched))

    def distance(
        self, own: Tensor, own_log: Tensor, theirs: Tensor, their_log: Tensor, pairs: Pairs
    ) -> Tensor:
        """See CrossObjective."""
        their_ids, own_ids = self.their_ids.to(own.device), self.own_ids.to(own.device)
        q = _merged(own_log, own, pairs.student)
        p = _merged(their_log, theirs, pairs.teacher)
        q_m, p_m = q[:, own_ids], p[:, their_ids]
        alike = (p_m.exp() * (p_m - q_m)).masked_fill(p_m == -torch.inf, 0.0).sum(-1)
        a, b = self.weights
        if b == 0.0:
            return a * alike
        others = sorted_distance(_without(q, own_ids).exp(), _without(p, their_ids).exp())
        return a * alike + b * others


def alike_tokens(teacher: Pieces, student: Pieces, ends: dict[int, int]) -> np.ndarray:
    """int64 [2, C]: the ids of tokens that stand for the same bytes, and, of special ones, for the
    same role."""
    if teacher.fingerprint == student.fingerprint:
        return np.tile(np.arange(len(teacher)), (2, 1))
    pairs = [
        (number, student.by_bytes[raw])
        for raw, number in teacher.by_bytes.items()
        if raw in student.by_bytes
    ]
    taken = {own for _, own in pairs}
    pairs += [(number, own) for number, own in ends.items() if own not in taken]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2).T


def _merged(log: Tensor, tokens: Tensor, spans: np.ndarray) -> Tensor:
    before = prefix_sums(log, spans, tokens, last=False)
    return log[torch.from_numpy(spans[:, 1] - 1).to(log.device)] + before[:, None]


def _without(log: Tensor, ids: Tensor) -> Tensor:
    kept = torch.ones(log.shape[1], dtype=torch.bool, device=log.device)
    kept[ids] = False
    return log[:, kept]
