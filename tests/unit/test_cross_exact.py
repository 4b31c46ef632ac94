"""A student's tokens by enumeration: every text that a small explicit teacher can write, cut by the
student. What a record says must be its probability, in float64."""

import itertools

import numpy as np
import pytest
from support.explicit import CASES, LONGEST, THREES, Explicit, byte_level

from axolotl_distill.align import Pair
from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS, CrossSource
from axolotl_distill.store import encoding

# Where it matters what would have followed a token that did not come; see align/chain.py.
NEARLY = {
    "student splits, and merges begin anywhere": (("a b", "ab c", "c a"), (), "abc"),
    "each merges what the other splits": (("a b", "c c"), ("b c", "a a"), "abc"),
}


def compared(case: tuple):
    """(what was said, truth) of every entry, and of every tail, over the likeliest texts."""
    theirs, own, letters = case
    teacher, student = byte_level(*theirs), byte_level(*own)
    explicit = Explicit(teacher, letters, seed=1)
    end_t, end_s = explicit.end, student.tokenizer.eos_token_id
    texts = list(explicit.texts())
    cut = {
        tokens: (*student.cut([b"".join(teacher.bytes_of[i] for i in tokens).decode()])[0], end_s)
        for tokens, _ in texts
    }
    truth: dict[tuple[int, ...], float] = {}
    for tokens, mass in texts:
        for length in range(len(cut[tokens]) + 1):
            start = cut[tokens][:length]
            truth[start] = truth.get(start, 0.0) + mass
    assert truth[()] == pytest.approx(1.0)

    pair = Pair(teacher, student, {end_t: end_s})
    # Three letters go on at random, as words do not.
    often = np.full(len(teacher), 100)
    doubtful = pair.doubtful(often, often)
    source = CrossSource(explicit, pair, doubtful, k=6, batch_tokens=1 << 20)
    chosen = [tokens for tokens, mass in sorted(texts, key=lambda text: -text[1])][:200:5]
    rows = {
        number: {
            TEACHER_IDS: [end_t, *tokens, end_t], TEACHER_LABELS: [-100, *tokens, end_t],
            "input_ids": [end_s, *cut[tokens]], "labels": [-100, *cut[tokens]],
        }
        for number, tokens in enumerate(chosen)
    }  # fmt: skip
    entries, tails = [], []
    for number, records in source.records(rows, set(rows)):
        seen = cut[chosen[number]]
        assert len(records) == len(seen)
        ids, logprobs = encoding.decode_logprobs(records.entries, len(student))
        starts = np.cumsum(records.lengths) - records.lengths
        for k, start in enumerate(starts):
            here = slice(start, start + records.lengths[k])
            said = dict(zip(ids[here].tolist(), np.exp(logprobs[here]), strict=True))
            assert seen[k] in said
            exact = {token: truth.get((*seen[:k], token), 0.0) / truth[seen[:k]] for token in said}
            entries += [(prob, exact[token]) for token, prob in said.items()]
            tail = np.exp(encoding.decode_tail(records.tail[k, 0]))
            tails.append((tail, 1 - sum(exact.values())))
    return np.array(entries), np.array(tails)


@pytest.mark.parametrize("case", CASES)
def test_every_record_is_the_truth(case):
    entries, tails = compared(CASES[case])
    # A code of the store's is 32 / 2^23 nats; what is below e^-32 is written as that.
    assert entries[:, 0] == pytest.approx(entries[:, 1], rel=1e-5, abs=2e-14)
    assert tails[:, 0] == pytest.approx(tails[:, 1], rel=1e-3, abs=2e-5)
    print(f"{case}: {len(tails)} records, {len(entries)} entries, mean tail {tails.mean():.3f}")
    if case == "alike":
        assert tails.max() < 2e-5


@pytest.mark.parametrize("case", NEARLY)
def test_what_is_not_known_is_small(case):
    entries, _ = compared(NEARLY[case])
    error = np.abs(entries[:, 0] - entries[:, 1])
    print(f"{case}: mean error {error.mean():.4f}, largest {error.max():.4f}")
    assert error.mean() < 0.05


def test_the_boundary_factor_is_needed():
    """`1` may go on to `12`: its probability is not the teacher's own."""
    teacher, student = byte_level(), byte_level(THREES)
    explicit = Explicit(teacher, "12", seed=1)
    one = teacher.by_bytes[b"1"]
    exact = sum(
        mass for tokens, mass in explicit.texts()
        if student.cut([b"".join(teacher.bytes_of[i] for i in tokens).decode()])[0][:1] == [one]
    )  # fmt: skip
    assert exact < 0.9 * explicit.probs(())[one]


def test_a_row_keeps_the_probability_of_its_text():
    """Its records' own probabilities multiply to the teacher's of the text."""
    for theirs, own in itertools.permutations([("a b",), ("b c", "c c"), ("a b", "ab c")], 2):
        teacher, student = byte_level(*theirs), byte_level(*own)
        explicit = Explicit(teacher, "abc", seed=2)
        pair = Pair(teacher, student, {explicit.end: student.tokenizer.eos_token_id})
        nothing = np.zeros(len(teacher), np.int64)
        source = CrossSource(explicit, pair, pair.doubtful(nothing, nothing), k=9, batch_tokens=99)
        tokens = teacher.cut(["abcabcc"])[0][:LONGEST]
        text = b"".join(teacher.bytes_of[i] for i in tokens).decode()
        cut = [*student.cut([text])[0], student.tokenizer.eos_token_id]
        row = {
            TEACHER_IDS: [0, *tokens, explicit.end], TEACHER_LABELS: [-100, *tokens, explicit.end],
            "input_ids": [0, *cut], "labels": [-100, *cut],
        }  # fmt: skip
        ((_, records),) = source.records({0: row}, {0})
        ids, logprobs = encoding.decode_logprobs(records.entries, len(student))
        starts = np.cumsum(records.lengths) - records.lengths
        total = sum(
            logprobs[start : start + n][ids[start : start + n] == token].item()
            for start, n, token in zip(starts, records.lengths, cut, strict=True)
        )
        row_ids = [*tokens, explicit.end]
        expected = sum(
            np.log(explicit.probs(tuple(row_ids[:k]))[token]) for k, token in enumerate(row_ids)
        )
        assert total == pytest.approx(expected, abs=1e-4)
