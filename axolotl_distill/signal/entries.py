"""Records of a store as the loss takes them: `store.encoding` once more, on the batch's device."""

import torch
from distill_kernels import SparseTeacher
from torch import Tensor
from torch.nn.functional import logsigmoid

from axolotl_distill.store.encoding import FIXED_POINT, LOGPROB_RANGE, NO_TAIL, id_bits, max_code

PAD = -1
"""The bits of `encoding.PAD` as int32: torch has few operations on uint32."""


def decode_entries(
    entries: Tensor,
    *,
    vocab_size: int,
    sampled: bool,
    temperature: float,
    tail: Tensor | None = None,
    entropy: Tensor | None = None,
) -> SparseTeacher:
    """The teacher's distribution at `temperature`, from what the store holds at T = 1.

    entries  int32 [M, K]: the bits of uint32 entries; PAD = no entry
    tail     int16 [M], of this temperature, or None: the entries are the whole distribution
    entropy  int16 [M], or None; with draws only

    The entries are tempered and made to sum to the head's mass, so that head and tail are a
    distribution to fp32 rounding at every temperature:

        log p_k = log softmax_k(logprob / T) + log(1 - tail_T)        of log-probabilities
        log p_k = log(count_k / sum of counts)                        of draws
    """
    value_bits = 32 - id_bits(vocab_size)
    mask = entries != PAD
    bits = entries.to(torch.int64) & 0xFFFFFFFF
    ids = torch.where(mask, bits >> value_bits, -1)
    code = (bits & ((1 << value_bits) - 1)).to(torch.float32)
    if sampled:
        value = code.log()
    else:
        value = code * (-LOGPROB_RANGE / max_code(vocab_size) / temperature)
    value = value.masked_fill(~mask, -torch.inf)
    # A row of pads only would be -inf - (-inf); its logprobs stay -inf.
    total = value.logsumexp(-1, keepdim=True).nan_to_num(neginf=0.0)
    logprobs = value - total

    tail_logprob = None
    if tail is not None:
        log_odds = (tail.to(torch.float32) / FIXED_POINT).masked_fill(
            tail == int(NO_TAIL), -torch.inf
        )
        tail_logprob = logsigmoid(log_odds)
        if not sampled:
            logprobs = logprobs + logsigmoid(-log_odds)[:, None]
    return SparseTeacher(
        ids=ids,
        logprobs=logprobs,
        tail_logprob=tail_logprob,
        entropy=None if entropy is None else entropy.to(torch.float32) / FIXED_POINT,
    )
