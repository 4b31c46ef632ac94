"""A few tokens that stand for a whole distribution, drawn so that little is left to chance."""

import torch
from torch import Tensor

# Cumulative probabilities in float64 that are worked on at once, with about three times as much.
BLOCK_BYTES = 64 << 20


def draw(logits_RV: Tensor, draws: int, parts: int, generator: torch.Generator) -> Tensor:
    """How many of `parts` equal parts of its probability a row gives to each token, int32 [R, V].

    With p = softmax(logits), fp32 [R, V] (at the temperature wanted), and n = draws:

        sum_v count_v = parts        in every row
        E[count_v] = parts * p_v     so sum_v count_v / parts * f(v) is an unbiased E_p[f]

    A token likelier than 1/n has its own share, a floor or a ceiling of it in parts, but for what
    evens out the sum. The rest of the vocabulary is drawn from systematically: each draw weighs
    1/n, and no token comes twice. So the share of a likely token is off by what evens out the
    sum, and that of one of the tail has the variance p (1/n - p), where n independent draws (Sparse
    Logit Sampling, arXiv 2503.16870) have p (1 - p) / n. The threshold is that of Fearnhead and
    Clifford (2003, optimal resampling) for a given share, the spacing Kitagawa's (1996).

    `parts` is a multiple of `draws`. The same generator gives the same on a CPU; on CUDA cumulative
    sums are not added up in the same order each time, and once in a while a neighbour is drawn.
    """
    assert parts >= draws and parts % draws == 0, "the parts of a draw are whole"
    rows = max(1, BLOCK_BYTES // (8 * logits_RV.shape[1]))
    blocks = logits_RV.split(rows)
    return torch.cat([_draw(block, draws, parts, generator) for block in blocks])


def _draw(logits_RV: Tensor, draws: int, parts: int, generator: torch.Generator) -> Tensor:
    p_RV = logits_RV.softmax(-1)
    is_head_RV = p_RV > 1 / draws
    head_RH, ids_RH = _few(p_RV, is_head_RV)
    reach_RV = p_RV.masked_fill_(is_head_RV, 0.0).cumsum(-1, dtype=torch.float64)
    tail, head = reach_RV[:, -1:].clone(), head_RH.sum(-1, keepdim=True)
    # Where there is no head, this is `draws` to the last bit, and so is the number drawn.
    counts_RV = _spread(reach_RV, tail / (tail + head) * draws, generator)
    share = parts // draws
    left = parts - share * counts_RV.sum(-1, keepdim=True)
    given_RH = _spread(head_RH.cumsum(-1), left.double(), generator)
    return counts_RV.mul_(share).scatter_add_(1, ids_RH, given_RH)


def _few(p_RV: Tensor, chosen_RV: Tensor) -> tuple[Tensor, Tensor]:
    """(p as float64, ids), [R, H] each, of the chosen, which are few; filled up with 0 of id 0."""
    lengths = chosen_RV.sum(-1, keepdim=True)
    most = int(lengths.max()) if lengths.numel() else 0
    inside = torch.arange(max(1, most), device=p_RV.device) < lengths
    p_RH = torch.zeros(inside.shape, dtype=torch.float64, device=p_RV.device)
    ids_RH = torch.zeros_like(inside, dtype=torch.int64)
    p_RH[inside], ids_RH[inside] = p_RV[chosen_RV].double(), chosen_RV.nonzero()[:, 1]
    return p_RH, ids_RH


def _spread(reach_RV: Tensor, total_R1: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers int32 [R, V] in proportion to weights whose cumulative sums float64 [R, V] are
    given, and overwritten: each is a floor or a ceiling of its part of `total`, with that part as
    expectation. They sum to `total` where that is whole.

    Systematic sampling: one random start a row, then even steps along the cumulative weights.
    """
    start = torch.rand(
        total_R1.shape, dtype=reach_RV.dtype, device=reach_RV.device, generator=generator
    )
    # x / x is 1, so the last reach is `total` itself and no rounding gains or loses a step.
    last = reach_RV[:, -1:].clamp_min(torch.finfo(reach_RV.dtype).tiny)
    steps = reach_RV.div_(last).mul_(total_R1).add_(start).floor_().int()
    return torch.diff(steps, dim=-1, prepend=torch.zeros_like(steps[:, :1]))
