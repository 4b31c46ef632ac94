"""From a teacher's logits to the records of a store."""

import numpy as np
import torch
from torch import Tensor

from axolotl_distill.capture.draws import draw
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store import RecordBatch, encoding


def make_records(logits_RV: Tensor, args: CaptureArgs, seed: int) -> RecordBatch:
    """Records of `args.method` for fp32 logits [R, V].

    topk     the k likeliest tokens, likeliest first
    nucleus  the likeliest tokens until they hold p of the mass at T=1, at least 1, at most max_k
    sampled  shares of the whole distribution at the sampling temperature, see draws.py, and the
             entropy there; `seed` fixes what is drawn

    The tail, which draws have none of, is what the kept tokens leave at each temperature: a
    log-sum-exp over all other tokens, in the log-odds that the store keeps.
    """
    if args.method == "sampled":
        return _sampled(logits_RV, args, seed)
    vocab_size = logits_RV.shape[-1]
    most = min(args.k if args.method == "topk" else args.max_k, vocab_size)
    top = logits_RV.topk(most, dim=-1)
    logprobs_RK = top.values - logits_RV.logsumexp(-1, keepdim=True)
    if args.method == "topk":
        kept_RK = torch.ones_like(top.indices, dtype=torch.bool)
    else:
        before = logprobs_RK.exp().cumsum(-1) - logprobs_RK.exp()
        kept_RK = before < args.p
        kept_RK[:, 0] = True
    entries_RK = encoding.encode_logprobs(
        top.indices.cpu().numpy(), logprobs_RK.cpu().numpy(), vocab_size
    )
    tail = tails(logits_RV, top.indices, kept_RK, args.own_temperatures)
    return RecordBatch(
        {"entries": entries_RK[kept_RK.cpu().numpy()], "tail": tail},
        lengths=kept_RK.sum(-1).cpu().numpy(),
    )


def tails(
    logits_RV: Tensor, ids_RK: Tensor, kept_RK: Tensor, temperatures: list[float]
) -> np.ndarray:
    """Log-odds of the mass outside the kept ids, int16 [R, temperatures].

    Entries that are not kept repeat the row's first id, which always is.
    """
    ids_RK = torch.where(kept_RK, ids_RK, ids_RK[:, :1])
    head_RK = logits_RV.gather(1, ids_RK)
    rest_RV = logits_RV.scatter(1, ids_RK, -torch.inf)
    columns = []
    for temperature in temperatures:
        head = (head_RK / temperature).masked_fill(~kept_RK, -torch.inf).logsumexp(-1)
        rest = (rest_RV / temperature).logsumexp(-1)
        columns.append(encoding.encode_tail(rest.cpu().numpy(), head.cpu().numpy()))
    return np.stack(columns, axis=1)


def _sampled(logits_RV: Tensor, args: CaptureArgs, seed: int) -> RecordBatch:
    vocab_size = logits_RV.shape[-1]
    tempered_RV = logits_RV / args.sampling_temperature
    generator = torch.Generator(device=logits_RV.device).manual_seed(seed)
    parts = encoding.parts(vocab_size, args.draws)
    counts_RV = draw(tempered_RV, args.draws, parts, generator)
    kept_RV = counts_RV > 0
    entropy_R = torch.special.entr(tempered_RV.softmax(-1)).sum(-1)
    return RecordBatch(
        {
            "entries": encoding.encode_counts(
                kept_RV.nonzero()[:, 1].cpu().numpy(), counts_RV[kept_RV].cpu().numpy(), vocab_size
            ),
            "entropy": encoding.encode_entropy(entropy_R.cpu().numpy()),
        },
        lengths=kept_RV.sum(-1).cpu().numpy(),
    )
