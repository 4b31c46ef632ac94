"""Universal logit distillation: sorted probabilities, whatever their tokens are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from axolotl_distill.objectives.crossed import CrossObjective
from axolotl_distill.signal.signal import Pairs


class ULDObjective(CrossObjective):
    """D = sum_i |p_(i) - q_(i)|, p_(1) >= p_(2) >= … (arXiv 2402.12030).

    The k-th token of an answer goes with the k-th of the teacher's, and the smaller vocabulary is
    filled up with zeros. Between 0 and 2; 0 where both are alike but for the names of the tokens.
    """

    name = "uld"

    def distance(
        self, own: Tensor, own_log: Tensor, theirs: Tensor, their_log: Tensor, pairs: Pairs
    ) -> Tensor:
        """See CrossObjective."""
        at = torch.from_numpy(pairs.student[:, 0]).to(own.device)
        there = torch.from_numpy(pairs.teacher[:, 0]).to(own.device)
        return sorted_distance(own_log[at].exp(), their_log[there].exp())


def sorted_distance(own: Tensor, theirs: Tensor) -> Tensor:
    """[G]: the L1 distance of two rows of probabilities, [G, V] and [G, Vt], each in its order."""
    size = max(own.shape[1], theirs.shape[1])
    ours, others = (_in_order(probs, size) for probs in (own, theirs))
    return (ours - others).abs().sum(-1)


def _in_order(probs: Tensor, size: int) -> Tensor:
    ordered, _ = probs.sort(-1, descending=True)
    return F.pad(ordered, (0, size - probs.shape[1]))
