"""Spans of real tokenizers, and rows that are one conversation to both."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cli import distill_here
from support.tokenizers import ALL, deepseek
from transformers import AutoTokenizer

from axolotl_distill.align import Pair, Pieces, align, pair_rows
from axolotl_distill.capture.cross import CrossSource
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.oracle import Oracle, plain_row, survey_of
from axolotl_distill.commands.align import CODE, ENGLISH
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.store.encoding import decode_logprobs, decode_tail
from axolotl_distill.teachers.hf import HFTeacher

PARTS = [*"ab Ze1290.,'\n\t-_(é日語한ع🙂ﬁ", "  ", "👩🏽‍🚀", "\r\n", " the", "ing"]
WRITTEN = st.lists(st.sampled_from(PARTS), min_size=1, max_size=40).map("".join)


@pytest.fixture(scope="module")
def pieces(smollm2_dir):
    """Every tokenizer as its bytes."""
    made = {name: Pieces(make()) for name, make in ALL.items()}
    return made | {"smollm2": Pieces(AutoTokenizer.from_pretrained(smollm2_dir))}


def test_spans_partition_the_bytes(pieces):
    @settings(max_examples=60, deadline=None)
    @given(WRITTEN)
    def check(text):
        cuts = {name: each.cut([text])[0] for name, each in pieces.items()}
        whole = {
            name: each.lengths[cuts[name]]
            for name, each in pieces.items()
            if cuts[name] and b"".join(each.bytes_of[i] for i in cuts[name]) == text.encode()
        }
        # Qwen's writes NFC, so that a text may be another one to it.
        assert set(pieces) - {"qwen"} <= set(whole)
        for name, lengths in whole.items():
            spans = align(whole["smollm2"], lengths)
            assert spans.bytes[0] == 0 and spans.bytes[-1] == len(text.encode())
            assert spans.teacher[-1] == len(whole["smollm2"]) and spans.student[-1] == len(lengths)
            for side in (spans.bytes, spans.teacher, spans.student):
                assert (np.diff(side) > 0).all()
            ends = [set(np.cumsum(one).tolist()) for one in (whole["smollm2"], lengths)]
            # The smallest: every common cut bounds one.
            assert set(spans.bytes[1:].tolist()) == ends[0] & ends[1]
            if name == "smollm2":
                assert len(spans) == len(lengths)

    check()


def test_alignment_is_linear():
    rng = np.random.default_rng(0)
    seconds = []
    for tokens in (100_000, 200_000):
        lengths = rng.integers(1, 9, tokens)
        other = np.add.reduceat(lengths, np.arange(0, tokens, 3))
        took = []
        for _ in range(3):
            start = time.process_time()
            align(lengths, other)
            took.append(time.process_time() - start)
        seconds.append(min(took))
    assert seconds[0] < 1.0 and seconds[1] < 3.0 * seconds[0]


def test_roles_and_not_names(pieces):
    """End of turn to end of turn, a BOS on one side only, and white space of a template."""
    teacher, student = pieces["smollm2"], pieces["sentencepiece"]
    text = "The answer is 42."
    (theirs,), (own,) = teacher.cut([text]), student.cut([" " + text])
    end_t, end_s = 2, student.tokenizer.eos_token_id
    ((words, end),) = pair_rows(
        [5, *theirs, end_t, 7], [-100, *theirs, -100, -100],
        [1, 9, *own, end_s], [-100, -100, *own, end_s], teacher, student,
    )  # fmt: skip
    assert (words.lead, words.student_lead) == (b"", b" ")
    assert words.teacher == (1, 1 + len(theirs)) and words.student == (2, 2 + len(own))
    assert end.special and end.teacher == (1 + len(theirs), 2 + len(theirs))
    with pytest.raises(ValueError, match=r"its text is not the same: from byte 16"):
        (other,) = student.cut(["The answer is 42!"])
        pair_rows(theirs, theirs, other, other, teacher, student)
    with pytest.raises(ValueError, match=r"1 learnt parts .* 2 as the teacher's"):
        gap = [*theirs[:1], -100, *theirs[2:]]
        pair_rows(theirs, gap, own, own, teacher, student)


def test_its_own_tokenizer_is_one_to_one(pieces):
    pair = Pair(pieces["smollm2"], pieces["smollm2"])
    row = plain_row("Some text, 123 + 456, and a 🙂\n\n    more", pair)
    survey = survey_of([row], pair)
    assert set(survey.spans) == {(1, 1)}
    assert (pair.firsts == np.arange(len(pair.teacher))).all()
    assert not pair.doubtful(survey.occurrences, survey.open_ends).any()


def test_its_own_tokenizer_gives_its_own_records(pieces, tiny_llama_dir):
    """Through the cross-tokenizer path as without it: the same entries and tails, and loss."""
    pair = Pair(pieces["smollm2"], pieces["smollm2"])
    row = plain_row("def f(x):\n    return x + 350  # naïve 🙂\n\nThe end of it, is it not?", pair)
    survey = survey_of([row], pair)
    doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
    teacher = HFTeacher(TeacherArgs(model=str(tiny_llama_dir)), vocab_size=len(pair.teacher))
    ((_, crossed),) = CrossSource(teacher, pair, doubtful, k=32, batch_tokens=1).records(
        {0: row}, {0}
    )
    args = CaptureArgs(teacher="t", output="o", method="topk", k=32, temperatures=[1.0])
    ((_, plain),) = GradedSource(teacher, args, batch_tokens=1).records({0: row}, {0})
    size = len(pair.student)
    sides = []
    for records in (plain, crossed):
        ids, logprobs = decode_logprobs(records.entries, size)
        starts = np.cumsum(records.lengths) - records.lengths
        sides.append([
            dict(zip(ids[a : a + n].tolist(), logprobs[a : a + n].tolist(), strict=True))
            for a, n in zip(starts, records.lengths, strict=True)
        ])  # fmt: skip
    came = row["input_ids"][1:]
    for direct, through, token in zip(*sides, came, strict=True):
        # The token that came always has its entry, the least likely one makes room for it.
        shared = direct.keys() & through.keys()
        assert len(shared) >= 31 and token in through
        for number in shared:
            assert through[number] == pytest.approx(direct[number], abs=1e-3)
    tails = [np.exp(decode_tail(records.tail[:, 0])) for records in (plain, crossed)]
    inside = [token in direct for direct, token in zip(sides[0], came, strict=True)]
    assert tails[1][inside] == pytest.approx(tails[0][inside], abs=1e-5)


def test_a_numeral_that_may_go_on_is_doubtful(pieces):
    """DeepSeek has `35`, SmolLM2 writes it as two. How often a token goes on decides."""
    pair = Pair(pieces["smollm2"], pieces["deepseek"])
    three, to = (pair.teacher.by_bytes[raw] for raw in (b"3", b" to"))
    assert pair.goes_on[three] and pair.goes_on[to]
    occurrences = np.full(len(pair.teacher), 100)
    open_ends = np.zeros(len(pair.teacher), np.int64)
    open_ends[three] = 60
    doubtful = pair.doubtful(occurrences, open_ends)
    ids = pair.student.by_bytes
    assert doubtful[ids[b"3"]] and doubtful[ids[b"35"]] and not doubtful[ids[b" to"]]
    nothing = np.zeros_like(occurrences)
    unseen = pair.doubtful(nothing, nothing)
    # Of a text that has neither: the vocabularies say what to expect of a numeral and of a word.
    assert unseen[ids[b"3"]] and not unseen[ids[b" to"]]
    assert pair.expected_open[three] > 0.3
    open_ends[to] = 60
    assert pair.doubtful(occurrences, open_ends)[ids[b" to"]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "least"),
    [
        ("sentencepiece", {"English": 0.96, "code": 0.86}),
        ("deepseek", {"English": 0.9, "code": 0.8}),
    ],
)
def test_most_of_a_real_teacher_s_probability_is_carried(pieces, smollm2_dir, student, least):
    pair = Pair(pieces["smollm2"], pieces[student])
    rows = {name: plain_row(text, pair) for name, text in (("English", ENGLISH), ("code", CODE))}
    survey = survey_of(list(rows.values()), pair)
    oracle = Oracle(
        HFTeacher(TeacherArgs(model=str(smollm2_dir)), vocab_size=len(pair.teacher)), pair, survey
    )
    for name, row in rows.items():
        assert oracle.masses(row).mean() > least[name], name


@pytest.mark.slow
def test_span_is_held_to_an_oracle(smollm2_dir, tmp_path):
    """The whole of `axolotl distill align`: digits by threes on the student's side only."""
    deepseek().save_pretrained(tmp_path / "student")
    done = distill_here("align", smollm2_dir, tmp_path / "student", "--samples", 300, "--json")
    report = json.loads(done.stdout)
    span, *maps = report["methods"].values()
    assert report["recommended"] == "span" and span["within"] >= 0.85
    assert span["error"] < 0.05 < 0.1 < report["methods"]["embedding"]["error"]
    assert all(span["error"] < each["error"] for each in maps)
    found = {one["prompt"]: one for one in report["oracle"]}
    # `202` is one token of the student's; a map knows only the teacher's `2`.
    assert found["In the year "]["embedding"] < 0.01 < 0.3 < found["In the year "]["span"]


def test_a_text_that_does_not_come_back(pieces):
    pair = Pair(pieces["smollm2"], pieces["qwen"])
    with pytest.raises(CaptureError, match="does not come back"):
        plain_row("cafe\u0301", pair)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"cross_tokenizer": {"method": "uld"}}, "Use span"),
        ({"cross_tokenizer": {"check": 3}}, "too few to count"),
        ({"cross_tokenizer": {"check": 200}, "teacher": "m"}, "read by a capture only"),
        ({"cross_tokenizer": {}, "temperature": 2.0}, "T = 1 only"),
        ({"cross_tokenizer": {}, "support": "renormalize"}, "tail_bucket"),
        ({"cross_tokenizer": {}, "capture": {"teacher": "t", "output": "o", "draws": 4}}, "topk"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_it(block, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill({"teacher": "store", **block})


def test_its_records_are_the_likeliest_at_one():
    capture = {"teacher": "t", "output": "o"}
    args = parse_distill({"cross_tokenizer": {}, "capture": capture}).capture
    assert (args.method, args.temperatures) == ("topk", [1.0])


@pytest.mark.slow
def test_a_teacher_s_own_records_are_held_for_right(smollm2_dir):
    """With its own tokenizer on both sides the record is the truth, and what is counted says so."""
    report = json.loads(
        distill_here("align", smollm2_dir, smollm2_dir, "--samples", 200, "--json").stdout
    )
    assert report["same_tokenizer"] and report["recommended"] == "span"
    assert all(each["within"] >= 0.9 for each in report["methods"].values())
    for one in report["oracle"]:
        assert one["counted"] >= 75 and abs(one["span"] - one["oracle"]) < 5 * one["error"]
