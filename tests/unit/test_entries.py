"""Entries decoded on the device are what the store's numpy code wrote."""

import numpy as np
import pytest
import torch
from support.stores import topk_records

from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.store import encoding


@pytest.mark.parametrize("vocab", [2, 1000, 49_152, 128_256, 151_936])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_logprobs(vocab, temperature):
    logits = torch.randn(6, vocab, dtype=torch.float64) * 4
    k = min(16, vocab)
    entries, tail = topk_records(logits, k, [temperature])
    teacher = decode_entries(
        torch.from_numpy(entries.view(np.int32).reshape(6, k)),
        vocab_size=vocab,
        sampled=False,
        temperature=temperature,
        tail=torch.from_numpy(tail[:, 0]),
    )
    exact = (logits / temperature).log_softmax(-1)
    top = exact.topk(k)
    assert torch.equal(teacher.ids, logits.topk(k).indices)
    step = encoding.LOGPROB_RANGE / encoding.max_code(vocab)
    error = (teacher.logprobs.double() - top.values).abs()
    stored = logits.log_softmax(-1).topk(k).values
    assert error[stored > -encoding.LOGPROB_RANGE].max() <= 2 * step / temperature + 1e-3
    held = teacher.logprobs.double().exp().sum(-1) + teacher.tail_logprob.double().exp()
    torch.testing.assert_close(held, torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_counts_and_padding():
    ids = np.array([[3, 9, 4], [7, 0, 0]])
    entries = encoding.encode_counts(ids, np.array([[5, 2, 1], [8, 1, 1]]), 1000)
    entries[1, 1:] = encoding.PAD
    teacher = decode_entries(
        torch.from_numpy(entries.view(np.int32)),
        vocab_size=1000,
        sampled=True,
        temperature=1.0,
        entropy=torch.tensor([1024, 2048], dtype=torch.int16),
    )
    assert teacher.ids.tolist() == [[3, 9, 4], [7, -1, -1]]
    torch.testing.assert_close(
        teacher.logprobs.exp(), torch.tensor([[5 / 8, 2 / 8, 1 / 8], [1.0, 0.0, 0.0]])
    )
    assert teacher.entropy.tolist() == [1.0, 2.0]


def test_no_tail_and_no_entries():
    entries = torch.full((2, 2), -1, dtype=torch.int32)
    first = encoding.encode_logprobs(np.array([1, 2]), np.log([0.25, 0.75]), 10)
    entries[0] = torch.from_numpy(first.view(np.int32))
    teacher = decode_entries(
        entries,
        vocab_size=10,
        sampled=False,
        temperature=1.0,
        tail=torch.tensor([-32768, 0], dtype=torch.int16),
    )
    assert teacher.ids[1].tolist() == [-1, -1]
    assert teacher.tail_logprob[0] == -torch.inf
    assert torch.isneginf(teacher.logprobs[1]).all()
    assert teacher.logprobs[0].exp().sum().item() == pytest.approx(1.0, abs=1e-6)
