"""What servers answer, read as what it means; and the tails that are made of it."""

import math

import numpy as np
import pytest

from axolotl_distill.capture.tail import tails_from_top
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.store.encoding import NO_TAIL, decode_tail
from axolotl_distill.teachers.engines import ENGINES
from axolotl_distill.teachers.tokenizer import probe_texts
from axolotl_distill.teachers.top import TopLogprobs, top_logprobs

VOCAB = 5000


def entry(logprob, rank):
    return {"logprob": logprob, "rank": rank, "decoded_token": "?"}


def vllm(*rows):
    return {"choices": [{"prompt_logprobs": list(rows)}]}


def test_vllm_entries_are_kept_by_rank_not_by_place():
    """The prompt's own token comes first; beyond the top k it is the one too many."""
    outside = {"9": entry(-7.0, 40), "3": entry(-0.5, 1), "4": entry(-1.5, 2)}
    inside = {"4": entry(-1.5, 2), "3": entry(-0.5, 1)}
    rows = ENGINES["vllm"].rows(vllm(None, outside, inside), 2)
    assert rows[0] is None
    assert rows[1] == [(3, -0.5), (4, -1.5)] and sorted(rows[2]) == rows[1]
    # As likely as the k-th, but not among the k: a tie is told by its rank alone.
    tie = {"9": entry(-1.5, 3), "3": entry(-0.5, 1), "4": entry(-1.5, 2)}
    assert ENGINES["vllm"].rows(vllm(tie), 2) == [rows[1]]


def test_sglang_entries():
    answer = {"meta_info": {"input_top_logprobs": [None, [[-0.5, 3, None], [-1.5, 4, "x"]], []]}}
    assert ENGINES["sglang"].rows(answer, 2) == [None, [(3, -0.5), (4, -1.5)], []]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, {"meta_info": {}}])
def test_an_answer_of_another_kind(engine, answer):
    with pytest.raises(ValueError, match=r"server\.engine"):
        ENGINES[engine].rows(answer, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_asked_at_temperature_one_for_every_token(engine):
    body = ENGINES[engine].body("m", [5, 6, 7], 12)
    params = body.get("sampling_params", body)
    assert params["temperature"] == 1.0
    assert body.get("prompt", body.get("input_ids")) == [5, 6, 7]
    assert body.get("prompt_logprobs", body.get("top_logprobs_num")) == 12


def test_top_logprobs():
    beyond, impossible = (VOCAB, -0.1), (7, -math.inf)
    found = top_logprobs(
        [
            [(2, -2.0), (1, -0.5), (3, -3.0), (4, -4.0)],
            [beyond, (5, -0.7), impossible, (8, -9999.0)],
            [(6, 1e-7), (9, -16.0)],
        ],
        k=3,
        vocab_size=VOCAB,
    )
    assert found.ids.tolist() == [[1, 2, 3], [5, -1, -1], [6, 9, -1]]
    assert found.logprobs[0].tolist() == [-0.5, -2.0, -3.0]
    assert found.logprobs[1, 1:].tolist() == [-math.inf, -math.inf]
    assert found.logprobs[2, 0] == 0.0
    assert found.lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("position", "about"),
    [
        (None, "has no log-probabilities"),
        ([], "has no log-probabilities"),
        ([(1, -math.inf)], "has no log-probabilities"),
        ([(1, math.nan)], "log-probability nan"),
        ([(1, None)], "log-probability None"),
        ([(1, 12.5), (2, 3.0)], "not log-probabilities"),
        ([(1, -0.1), (2, -0.2)], "not log-probabilities"),
        ([(1, math.inf)], "not log-probabilities"),
    ],
)
def test_unusable_positions(position, about):
    with pytest.raises(ValueError, match=about):
        top_logprobs([[(1, -0.1)], position], k=4, vocab_size=VOCAB)


def padded(*rows):
    width = max(map(len, rows))
    return np.array([[*row, *[-math.inf] * (width - len(row))] for row in rows])


def tails(logprobs, temperatures=(1.0, 2.0, 4.0), vocab_size=VOCAB):
    return np.exp(decode_tail(tails_from_top(
        logprobs, np.isfinite(logprobs), temperatures, vocab_size
    )))  # fmt: skip


@pytest.mark.parametrize("exponent", [1.05, 1.6, 3.0])
@pytest.mark.parametrize("k", [1, 16, 64])
def test_a_power_law_is_recovered_at_every_temperature(exponent, k):
    logprobs = -exponent * np.log(np.arange(1, VOCAB + 1))
    logprobs -= np.logaddexp.reduce(logprobs)
    seen = tails(logprobs[None, :k])[0]
    for place, temperature in enumerate((1.0, 2.0, 4.0)):
        tempered = logprobs / temperature
        true = 1 - np.exp(np.logaddexp.reduce(tempered[:k]) - np.logaddexp.reduce(tempered))
        assert seen[place] == pytest.approx(true, rel=0.01)


def test_the_tail_at_one_is_what_is_left():
    rng = np.random.default_rng(0)
    probs = -np.sort(-rng.dirichlet(np.full(40, 0.3), 50), axis=1)[:, :10] * 0.97
    seen = tails(np.log(probs))[:, 0]
    assert seen == pytest.approx(1 - probs.sum(1), rel=1e-3)
    # Even where it is more than the last known token allows the others to hold.
    assert tails(np.log([[0.5, 1e-9]]))[0] == pytest.approx(
        [0.5, *tails(np.log([[0.5, 1e-9]]))[0, 1:]], rel=1e-3
    )


def test_rows_of_any_length_and_coarseness_have_a_finite_tail():
    rows = padded(
        [0.0],
        [-1e-9, -20.0, -21.0, -30.0],
        np.log([0.6, 0.3, 0.1]).tolist(),
        np.log([0.61, 0.31, 0.11]).tolist(),
        [-8.5] * 4,
        np.log([0.5, 0.2]).tolist(),
    )
    seen = tails(rows)
    assert np.isfinite(seen).all() and (seen > 0).all() and (seen < 1).all()
    assert (np.diff(seen, axis=1) > 0).all()
    # 1 - sum is zero, or less: the tail is small and never more than could be missing.
    assert seen[:3, 0].max() < 2e-5 and seen[3, 0] < 0.04


def test_a_whole_vocabulary_has_no_tail():
    logprobs = np.log(np.full((2, 8), 1 / 8))
    assert (tails_from_top(logprobs, np.ones((2, 8), bool), [1.0, 2.0], 8) == NO_TAIL).all()


def test_nucleus_puts_what_it_drops_into_the_tail():
    """Known tokens beyond the nucleus count with their own probability at every temperature."""
    probs = np.array([[0.5, 0.3, 0.1, 0.05]])
    top = TopLogprobs(np.array([[1, 2, 3, 4]]), np.log(probs))
    records = records_from_top(top, temperatures=[1.0, 2.0], vocab_size=VOCAB, p=0.7)
    assert records.lengths.tolist() == [2]
    tail = np.exp(decode_tail(records.tail))[0]
    assert tail[0] == pytest.approx(0.2, rel=1e-3)
    # At T=2 the dropped two alone weigh sqrt(0.1) + sqrt(0.05) against sqrt(0.5) + sqrt(0.3).
    head, dropped = np.sqrt([0.5, 0.3]).sum(), np.sqrt([0.1, 0.05]).sum()
    assert tail[1] > dropped / (head + dropped)


def test_topk_keeps_entries_though_they_sum_to_more_than_one():
    top = TopLogprobs(np.array([[1, 2, 3]]), np.log([[0.9, 0.11, 0.001]]))
    assert records_from_top(top, temperatures=[1.0], vocab_size=VOCAB).lengths.tolist() == [3]


def test_probes_reach_all_over_the_vocabulary(tokenizer):
    seen = {
        token
        for text in probe_texts(tokenizer)
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    }
    assert len(seen) > 500 and max(seen) > 0.99 * len(tokenizer)
