"""Records against their definitions, in float64, on random logits."""

import numpy as np
import pytest
import torch

from axolotl_distill.capture.graded import length_batches
from axolotl_distill.capture.records import make_records
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store.encoding import (
    decode_counts,
    decode_entropy,
    decode_logprobs,
    decode_tail,
    max_code,
)

ROWS, VOCAB = 12, 3000


def args(**values):
    return CaptureArgs(teacher="t", output="o", **values)


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCAB) * 4


def split(batch):
    return np.split(batch.entries, np.cumsum(batch.lengths)[:-1])


@pytest.mark.parametrize("method", ["topk", "nucleus"])
def test_entries_and_tails(logits, method):
    keys = {"topk": {"k": 20}, "nucleus": {"p": 0.9, "max_k": 40}}[method]
    batch = make_records(logits, args(method=method, **keys), seed=0)
    exact = logits.double().log_softmax(-1)
    for row, entries in enumerate(split(batch)):
        ids, logprobs = decode_logprobs(entries, VOCAB)
        order = exact[row].argsort(descending=True)
        assert ids.tolist() == order[: len(ids)].tolist()
        step = 32.0 / max_code(VOCAB)
        assert np.abs(logprobs - exact[row, ids].numpy()).max() <= 0.5 * step + 1e-5
        if method == "topk":
            assert len(ids) == 20
        else:
            mass = exact[row, order].exp().cumsum(0)
            wanted = int((mass < 0.9).sum()) + 1
            assert len(ids) == min(wanted, 40)
        for column, temperature in enumerate([1.0, 2.0, 4.0]):
            tempered = (logits[row].double() / temperature).softmax(-1)
            tail = 1.0 - tempered[ids].sum().item()
            seen = np.exp(decode_tail(batch.tail[row, column]))
            assert seen == pytest.approx(tail, rel=1e-3, abs=1e-9)


def test_draws(logits):
    wanted = args(method="sampled", draws=400, sampling_temperature=2.0, temperatures=[2.0])
    batch = make_records(logits, wanted, seed=3)
    again = make_records(logits, wanted, seed=3)
    assert (batch.entries == again.entries).all()
    assert (make_records(logits, wanted, seed=4).entries != batch.entries[:1]).any()
    probs = (logits.double() / 2.0).softmax(-1)
    for row, entries in enumerate(split(batch)):
        ids, counts = decode_counts(entries, VOCAB)
        assert counts.sum() == 400 and (np.diff(ids) > 0).all()
        # Five standard deviations of a binomial, for the likeliest token.
        top = int(probs[row].argmax())
        p = probs[row, top].item()
        count = counts[ids == top].sum()
        assert abs(count - 400 * p) < 5 * (400 * p * (1 - p)) ** 0.5 + 1
    entropy = -(probs * probs.log()).sum(-1).numpy()
    assert decode_entropy(batch.entropy) == pytest.approx(entropy, abs=2e-3)


def test_a_whole_vocabulary_has_no_tail():
    batch = make_records(torch.randn(3, 8), args(k=50), seed=0)
    assert batch.lengths.tolist() == [8, 8, 8]
    assert np.isneginf(decode_tail(batch.tail)).all()


def test_length_batches_bound_the_tokens():
    lengths = [5, 900, 17, 40, 41, 3, 300]
    rows = {i: {"input_ids": [0] * n} for i, n in enumerate(lengths)}
    batches = list(length_batches(rows, 200))
    assert sorted(index for batch in batches for index in batch) == list(rows)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 200
