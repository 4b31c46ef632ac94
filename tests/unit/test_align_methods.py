"""Maps from vocabulary to vocabulary: a vocabulary small enough to map by hand, every distance by
brute force, and records of real tokenizers."""

import random

import numpy as np
import pytest
from support.explicit import THREES, byte_level
from support.tokenizers import sentencepiece
from transformers import AutoTokenizer

from axolotl_distill.align import Pair, Pieces
from axolotl_distill.align.methods import METHODS
from axolotl_distill.align.methods.min_ed import FARTHEST, nearest
from axolotl_distill.align.pair import NONE
from axolotl_distill.capture.cross import TEACHER_IDS, CrossSource
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.oracle import plain_row, survey_of
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.signal.signal import Want
from axolotl_distill.store.encoding import decode_logprobs, decode_tail
from axolotl_distill.teachers.hf import HFTeacher


@pytest.fixture(scope="module")
def smollm2(smollm2_dir):
    return Pieces(AutoTokenizer.from_pretrained(smollm2_dir))


def levenshtein(a: str, b: str) -> int:
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, above[0] = above[0], i
        for j, y in enumerate(b, 1):
            corner, above[j] = above[j], min(above[j] + 1, above[j - 1] + 1, corner + (x != y))
    return above[-1]


def test_the_nearest_is_that_of_every_distance():
    rng = random.Random(0)
    drawn = ("".join(rng.choices("abcdefé語", k=rng.randint(1, 9))) for _ in range(900))
    words = list(dict.fromkeys(drawn))
    texts, among = words[:250], words[250:]
    expected = []
    for text in texts:
        edits = [levenshtein(text, other) for other in among]
        near = [
            (n, at) for at, n in enumerate(edits)
            if n <= FARTHEST and 2 * n < max(len(text), len(among[at]))
        ]  # fmt: skip
        expected.append(min(near)[1] if near else NONE)
    assert nearest(texts, among).tolist() == expected
    assert 20 < expected.count(NONE) < 200
    assert nearest(["abc"], []).tolist() == [NONE] and nearest(["x" * 99], ["x" * 98]) == [NONE]


def test_each_map_by_hand():
    """`abcd` is the teacher's alone: `abc` is one edit away, and it begins with the student's
    `ab` when that is what the student has."""
    teacher, student = byte_level("a b", "ab c", "abc d"), byte_level("a b", "ab c")
    pair = Pair(teacher, student, {teacher.tokenizer.eos_token_id: student.tokenizer.eos_token_id})
    whole, end = teacher.by_bytes[b"abcd"], teacher.tokenizer.eos_token_id
    maps = {name: build(pair) for name, build in METHODS.items()}
    assert maps["common_tokens"].targets[whole] == NONE
    assert maps["min_ed"].targets[whole] == student.by_bytes[b"abc"]
    assert maps["embedding"].targets[whole] == student.cut(["abcd"])[0][0]
    for each in maps.values():
        for raw in (b"a", b"ab", b"abc", b"\xff"):
            assert each.targets[teacher.by_bytes[raw]] == student.by_bytes[raw]
        assert each.targets[end] == student.tokenizer.eos_token_id
    # `123` has two of three characters of no token; `12` and `13` are one token of another.
    pair = Pair(byte_level(THREES), byte_level("1 2"))
    targets = METHODS["min_ed"](pair).targets
    ids = pair.teacher.by_bytes
    assert targets[ids[b"123"]] == pair.student.by_bytes[b"12"] and targets[ids[b"13"]] == NONE


def test_tokens_are_their_bytes(smollm2):
    """`Ġthe` is `▁the`, and `<0xE8>` a byte of both; by name they are not."""
    pair = Pair(smollm2, Pieces(sentencepiece()))
    targets = METHODS["common_tokens"](pair).targets
    names = pair.teacher.tokenizer.get_vocab(), pair.student.tokenizer.get_vocab()
    assert targets[names[0]["Ġthe"]] == names[1]["▁the"]
    by_name = sum(name in names[1] for name in names[0])
    assert (targets != NONE).sum() > 2 * by_name
    mapped = np.flatnonzero(targets != NONE)
    for number in mapped[::97].tolist():
        assert pair.teacher.bytes_of[number] == pair.student.bytes_of[targets[number]]


@pytest.mark.parametrize("method", METHODS)
def test_its_own_tokenizer_gives_its_own_records(smollm2, tiny_llama_dir, method):
    pair = Pair(smollm2, smollm2)
    row = plain_row("def f(x):\n    return x + 350  # naïve 🙂\n\nThe end.", pair)
    survey = survey_of([row], pair)
    doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
    teacher = HFTeacher(TeacherArgs(model=str(tiny_llama_dir)), vocab_size=len(pair.teacher))
    mapping = METHODS[method](pair)
    assert (mapping.targets == np.arange(len(pair.teacher))).all()
    source = CrossSource(teacher, pair, doubtful, k=32, batch_tokens=1, mapping=mapping)
    ((_, crossed),) = source.records({0: row}, {0})
    args = CaptureArgs(teacher="t", output="o", method="topk", k=32, temperatures=[1.0])
    ((_, plain),) = GradedSource(teacher, args, batch_tokens=1).records({0: row}, {0})
    assert held(crossed, len(pair.student), row["input_ids"][1:]) == pytest.approx(
        held(plain, len(pair.student), row["input_ids"][1:]), abs=2e-3
    )


def held(records, size, came):
    """{(record, id): log-probability} of the 31 likeliest, but for the token that came."""
    ids, logprobs = decode_logprobs(records.entries, size)
    found = {}
    starts = np.cumsum(records.lengths) - records.lengths
    for number, (start, length) in enumerate(zip(starts, records.lengths, strict=True)):
        here = [i for i in range(start, start + length) if ids[i] != came[number]][:31]
        found |= {(number, int(ids[i])): float(logprobs[i]) for i in here}
    return found


def test_where_both_cut_it_is_the_map_and_elsewhere_span(smollm2, tiny_llama_dir):
    """Each record of a text, worked out from the teacher's own probabilities."""
    student = Pieces(sentencepiece())
    pair = Pair(smollm2, student)
    row = plain_row("The cat of 35 is naïve", pair)
    survey = survey_of([row], pair)
    doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
    teacher = HFTeacher(TeacherArgs(model=str(tiny_llama_dir)), vocab_size=len(pair.teacher))
    k, size = 2000, len(student)
    theirs, own = row[TEACHER_IDS][1:], row["input_ids"][1:]
    ends_t = np.cumsum(pair.teacher.lengths[theirs]).tolist()
    ends_s = np.cumsum(pair.student.lengths[own]).tolist()
    every = {0: np.arange(len(theirs))}
    ((_, _, signal),) = teacher.grade({0: row[TEACHER_IDS]}, every, Want())
    probs = signal.distribution.logits.double().softmax(-1).numpy()

    def made(mapping):
        source = CrossSource(teacher, pair, doubtful, k=k, batch_tokens=1, mapping=mapping)
        ((_, records),) = source.records({0: row}, {0})
        ids, logprobs = decode_logprobs(records.entries, size)
        starts = np.cumsum(records.lengths) - records.lengths
        each = [
            dict(zip(ids[a : a + n].tolist(), np.exp(logprobs[a : a + n]), strict=True))
            for a, n in zip(starts, records.lengths, strict=True)
        ]
        return each, np.exp(decode_tail(records.tail[:, 0]))

    spans, _ = made(None)
    seen = set()
    for method, build in METHODS.items():
        mapping = build(pair)
        each, tails = made(mapping)
        for n, (start, token) in enumerate(zip([0, *ends_s], own, strict=False)):
            at = 0 if not start else (ends_t.index(start) + 1 if start in ends_t else None)
            alike = at is not None and mapping.targets[theirs[at]] == token
            if at is None or (mapping.alike and not alike):
                assert list(each[n]) == [token], (method, n)
                assert each[n][token] == pytest.approx(spans[n][token], rel=1e-3)
                seen.add((method, "span"))
                continue
            seen.add((method, "map"))
            found = np.zeros(size + 1)
            np.add.at(found, np.where(mapping.targets == NONE, size, mapping.targets), probs[at])
            assert each[n] == pytest.approx({i: found[i] for i in each[n]}, rel=1e-3, abs=1e-9)
            assert tails[n] == pytest.approx(1 - sum(each[n].values()), abs=1e-3)
    assert seen >= {("common_tokens", "map"), ("min_ed", "map"), ("embedding", "map")}
    assert any(kind == "span" for _, kind in seen)
