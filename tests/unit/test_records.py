"""Records against their definitions, in float64, on random logits."""

import numpy as np
import pytest
import torch

from axolotl_distill.capture.draws import draw
from axolotl_distill.capture.graded import length_batches
from axolotl_distill.capture.records import make_records
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store.encoding import (
    decode_counts,
    decode_entropy,
    decode_logprobs,
    decode_tail,
    max_code,
    parts,
)

ROWS, VOCAB = 12, 3000


def args(**values):
    return CaptureArgs(teacher="t", output="o", **values)


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2)) * 4


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


def test_draws_are_what_the_format_says(logits):
    wanted = args(draws=20, sampling_temperature=2.0)
    batch = make_records(logits, wanted, seed=3)
    again = make_records(logits, wanted, seed=3)
    assert (batch.entries == again.entries).all()
    assert (make_records(logits, wanted, seed=4).entries != batch.entries[:1]).any()
    probs = (logits.double() / 2.0).softmax(-1)
    whole = parts(VOCAB, 20)
    assert whole == 20 * (4096 // 20), "12 of 24 bits are the id's"
    for row, entries in enumerate(split(batch)):
        ids, counts = decode_counts(entries, VOCAB)
        assert counts.sum() == whole and (np.diff(ids) > 0).all() and len(ids) <= 20
        tail = probs[row, ids].numpy() <= 1 / 20
        assert (counts[tail] == whole // 20).all()
    entropy = -(probs * probs.log()).sum(-1).numpy()
    assert decode_entropy(batch.entropy) == pytest.approx(entropy, abs=2e-3)


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("draws", [1, 3, 16])
def test_draws_are_unbiased(spread, draws):
    """Means of many against the distribution: flat ones, which have no head, and peaked ones."""
    vocab, whole, times = 40, draws * 64, 20_000
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(1, vocab, generator=generator) * spread
    counts = draw(logits.expand(times, -1), draws, whole, generator)
    assert (counts.sum(-1) == whole).all()
    share = counts.double() / whole
    p = logits.double().softmax(-1)[0]
    # Of independent draws, whose variance is the larger one. A token that comes next to never may
    # come a few times.
    error = (p * (1 - p) / draws / times).sqrt()
    assert ((share.mean(0) - p).abs() < 5 * error + 5 / (draws * times)).all()
    chance = (p / draws**3 / times).sqrt()
    assert (share.var(0) <= p * (1 - p) / draws + 5 * chance + 5 / (draws**2 * times)).all()
    likely = p > 1 / draws
    if likely.any() and not likely.all():
        # What the head has to give up for the tail's whole shares, and one part.
        assert (share[:, likely] - p[likely]).abs().max() < 1 / draws + 1 / 64


def test_no_position_has_no_record():
    batch = make_records(torch.empty(0, 50), args(draws=16), seed=0)
    assert len(batch) == 0 and batch.entries.size == 0


def test_a_certain_teacher_leaves_one_entry():
    logits = torch.full((2, 50), -200.0)
    logits[0, 7] = logits[1, 49] = 200.0
    batch = make_records(logits, args(draws=16), seed=0)
    ids, counts = decode_counts(batch.entries, 50)
    assert ids.tolist() == [7, 49] and counts.tolist() == [parts(50, 16)] * 2


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
