"""A few tokens that stand for a whole distribution, drawn so that little is left to chance."""

import torch
from torch import Tensor

# Probabilities in float64 that are worked on at once, with about five tensors of their size.
BLOCK_BYTES = 64 << 20


def draw(logits_RV: Tensor, draws: int, parts: int, generator: torch.Generator) -> Tensor:
    """How many of `parts` equal parts of its probability a row gives to each token, int64 [R, V].

    With p = softmax(logits), fp32 [R, V] (at the temperature wanted), and n = draws:

        sum_v count_v = parts        in every row
        E[count_v] = parts * p_v     so sum_v count_v / parts * f(v) is an unbiased E_p[f]

    A token likelier than 1/n has its own share, a floor or a ceiling of it in parts, but for what
    evens out the sum. The rest of the vocabulary is drawn from systematically: each draw weighs
    1/n, and no token comes twice. So the likely tokens have next to no variance, and one of the
    tail has p (1/n - p), as of n independent draws (Sparse Logit Sampling, arXiv 2503.16870), less
    what even spacing takes away. The threshold is that of Fearnhead and Clifford (2003, optimal
    resampling) for a given share, the spacing Kitagawa's (1996).

    `parts` is a multiple of `draws`.
    """
    assert parts >= draws and parts % draws == 0, "the parts of a draw are whole"
    rows = max(1, BLOCK_BYTES // (8 * logits_RV.shape[1]))
    return torch.cat(
        [_draw(part, draws, parts, generator) for part in logits_RV.split(rows)]
        or [logits_RV.long()]
    )


def _draw(logits_RV: Tensor, draws: int, parts: int, generator: torch.Generator) -> Tensor:
    p_RV = logits_RV.double().softmax(-1)
    tail_RV = p_RV.masked_fill(p_RV > 1 / draws, 0.0)
    head_RV = p_RV - tail_RV
    tail, head = tail_RV.sum(-1, keepdim=True), head_RV.sum(-1, keepdim=True)
    # Where there is no head, this is `draws` to the last bit, and so is the number drawn.
    drawn_RV = _spread(tail_RV, tail / (tail + head) * draws, generator)
    share = parts // draws
    left = parts - share * drawn_RV.sum(-1, keepdim=True)
    return _spread(head_RV, left.double(), generator) + share * drawn_RV


def _spread(weights_RV: Tensor, total_R1: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers int64 [R, V] in proportion to the weights: each is a floor or a ceiling of its
    part of `total`, with that part as expectation. They sum to `total` where that is whole.

    Systematic sampling: one random start a row, then even steps along the cumulative weights.
    """
    reach = weights_RV.cumsum(-1)
    # x / x is 1, so the last reach is `total` itself and no rounding gains or loses a step.
    reach = reach / reach[:, -1:].clamp_min(torch.finfo(reach.dtype).tiny) * total_R1
    start = torch.rand(total_R1.shape, dtype=reach.dtype, device=reach.device, generator=generator)
    steps = (reach + start).floor().long()
    return torch.diff(steps, dim=-1, prepend=torch.zeros_like(steps[:, :1]))
