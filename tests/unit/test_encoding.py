"""The bits of a store, over random vocabularies and values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_distill.store import encoding

vocabularies = st.integers(1, 2**20)


@given(vocabularies, st.integers(0, 2**32), st.integers(1, 50))
def test_logprobs_round_trip_to_half_a_step(vocab, seed, size):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, size)
    logprobs = -rng.exponential(4.0, size)
    entries = encoding.encode_logprobs(ids, logprobs, vocab)
    seen_ids, seen = encoding.decode_logprobs(entries, vocab)
    assert entries.dtype == np.uint32 and not (entries == encoding.PAD).any()
    assert (seen_ids == ids).all()
    half = 0.5 * encoding.LOGPROB_RANGE / encoding.max_code(vocab)
    assert np.abs(seen - np.maximum(logprobs, -32.0)).max() <= half + 1e-6


@given(vocabularies, st.integers(0, 2**32))
def test_counts_round_trip(vocab, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab, 9)
    counts = rng.integers(1, encoding.max_code(vocab) + 1, 9)
    entries = encoding.encode_counts(ids, counts, vocab)
    seen_ids, seen = encoding.decode_counts(entries, vocab)
    assert (seen_ids == ids).all() and (seen == counts).all()
    assert not (entries == encoding.PAD).any()


@given(st.floats(-20.0, 20.0))
def test_tail_keeps_small_tails_and_small_heads(odds):
    log_tail, log_head = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    seen = encoding.decode_tail(encoding.encode_tail(np.array([log_tail]), np.array([log_head])))
    assert np.exp(seen - log_tail) == pytest.approx(1.0, abs=6e-4)
    head = -np.expm1(seen)
    if head > 1e-12:
        assert head == pytest.approx(np.exp(log_head), rel=1e-3)


def test_no_tail_is_exact():
    tail = encoding.encode_tail(np.array([-np.inf, -40.0]), np.array([0.0, 0.0]))
    assert encoding.decode_tail(tail)[0] == -np.inf
    assert np.isfinite(encoding.decode_tail(tail)[1])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 10"):
        encoding.encode_logprobs(np.array([10]), np.array([-1.0]), 10)
    with pytest.raises(ValueError, match="vocab_size 2097152"):
        encoding.id_bits(2**21)
    with pytest.raises(ValueError, match="draws"):
        encoding.encode_counts(np.array([1]), np.array([2**20]), 2**20)
