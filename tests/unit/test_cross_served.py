"""A teacher with another tokenizer behind a server, which names its likeliest tokens of a place and
the one that came."""

import numpy as np
import pytest
import torch
from support.explicit import CASES, Explicit, byte_level
from support.faulty_server import FaultyServer
from support.model_server import ModelServer

from axolotl_distill.align import Pair
from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS, CrossSource
from axolotl_distill.commands.recipe import Recipe
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, TokenizerMismatchError
from axolotl_distill.signal.signal import Want
from axolotl_distill.store import encoding
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.tokenizer import served_otherwise

SERVER = {"base_url": "http://x/v1", "engine": "vllm"}


class Table(torch.nn.Module):
    """An explicit teacher as a model: logits [1, S, V]."""

    def __init__(self, explicit: Explicit):
        super().__init__()
        self.explicit = explicit

    def forward(self, input_ids):
        ids = input_ids[0].tolist()
        probs = [self.explicit.probs(tuple(ids[1 : at + 1])) for at in range(len(ids))]
        logits = torch.tensor(np.log(np.maximum(np.stack(probs), 1e-300)), dtype=torch.float32)
        return type("Output", (), {"logits": logits[None]})


def served(explicit, url, k):
    teacher = TeacherArgs(model="teacher", server={"base_url": url, "engine": "vllm"})
    return ServerTeacher(teacher, vocab_size=explicit.vocab_size), Want(k, realised=True)


def records_of(sides, rows, k=None, spoil=lambda rows: rows):
    """{row: [{token: probability} of a record]}, and how much was not named. k: of a server."""
    explicit, teacher, student = sides
    pair = Pair(teacher, student, {explicit.end: student.tokenizer.eos_token_id})
    nothing = np.zeros(len(teacher), np.int64)
    about = {"pair": pair, "doubtful": pair.doubtful(nothing, nothing), "k": 300}
    if k is None:
        source = CrossSource(explicit, **about, batch_tokens=99)
        return said(source, rows, student), 0.0
    serving = ModelServer(
        Table(explicit), teacher.tokenizer, max_logprobs=explicit.vocab_size, spoil=spoil
    )
    with FaultyServer(serving.handlers) as server:
        remote, want = served(explicit, server.url, k)
        with remote:
            source = CrossSource(remote, **about, batch_tokens=None, want=want)
            return said(source, rows, student), source.unnamed.share


def said(source, rows, student):
    found = {}
    for index, records in source.records(dict(enumerate(rows)), set(range(len(rows)))):
        ids, logprobs = encoding.decode_logprobs(records.entries, len(student))
        edges = np.cumsum(records.lengths)[:-1]
        found[index] = [
            dict(zip(i.tolist(), np.exp(p).tolist(), strict=True))
            for i, p in zip(np.split(ids, edges), np.split(logprobs, edges), strict=True)
        ]
    return found


def row(sides, text):
    """An answer as both cut it."""
    explicit, teacher, student = sides
    there = [*teacher.cut([text])[0], explicit.end]
    here = [*student.cut([text])[0], student.tokenizer.eos_token_id]
    return {
        TEACHER_IDS: [there[-1], *there], TEACHER_LABELS: [-100, *there],
        "input_ids": [here[-1], *here], "labels": [-100, *here],
    }  # fmt: skip


def sides_of(case):
    theirs, own, letters = case
    teacher, student = byte_level(*theirs), byte_level(*own)
    return Explicit(teacher, letters, seed=1), teacher, student


@pytest.fixture(scope="module")
def sides():
    return sides_of(CASES["both, across each other"])


@pytest.fixture(scope="module")
def rows(sides):
    return [row(sides, text) for text in ("abcab", "cc")]


@pytest.mark.parametrize("case", CASES)
def test_one_that_names_all_tokens_gives_the_records_of_the_same_model_here(case):
    sides, letters = sides_of(CASES[case]), CASES[case][2]
    texts = [text for text in ("abcab", "cc", "12312") if set(text) <= set(letters)]
    rows = [row(sides, text) for text in texts or [letters]]
    expected, _ = records_of(sides, rows)
    found, unnamed = records_of(sides, rows, k=sides[0].vocab_size)
    assert unnamed == pytest.approx(0.0, abs=1e-6) and found.keys() == expected.keys()
    for index, records in expected.items():
        assert len(found[index]) == len(records) > 1
        for seen, true in zip(found[index], records, strict=True):
            for token in seen.keys() | true.keys():
                assert seen.get(token, 0.0) == pytest.approx(true.get(token, 0.0), abs=2e-6)


def test_one_that_names_few_keeps_the_probability_of_a_text(sides, rows):
    """Whatever is not named: what is said of the tokens that came multiplies to the teacher's
    probability of the answer, and no record sums to more than one."""
    explicit = sides[0]
    whole, _ = records_of(sides, rows)
    few, unnamed = records_of(sides, rows, k=1)
    assert 0.1 < unnamed < 0.9
    for index, each in enumerate(rows):
        own, theirs = each["labels"][1:], each[TEACHER_LABELS][1:]
        total = sum(np.log(heard[token]) for heard, token in zip(few[index], own, strict=True))
        expected = sum(
            np.log(explicit.probs(tuple(theirs[:at]))[token]) for at, token in enumerate(theirs)
        )
        assert total == pytest.approx(expected, abs=1e-4)
    assert sum(map(len, few[0])) < sum(map(len, whole[0]))
    assert all(sum(record.values()) <= 1.0 + 1e-5 for record in few[0])


def test_a_token_that_is_impossible_to_the_server_spoils_no_other(sides, rows):
    """vLLM writes -9999 for a probability of zero: that token is learnt as all but impossible, and
    what follows it as the teacher says."""
    expected, _ = records_of(sides, rows, k=sides[0].vocab_size)
    came = str(rows[0][TEACHER_IDS][2])

    def spoil(given):
        if len(given) == len(rows[0][TEACHER_IDS]):
            given[2] = {**given[2], came: {**given[2][came], "logprob": -9999.0}}
        return given

    found, _ = records_of(sides, rows, k=sides[0].vocab_size, spoil=spoil)
    assert all(np.isfinite([*record.values()]).all() for record in found[0])
    assert found[0][-1] == pytest.approx(expected[0][-1], abs=1e-5)
    assert found[1] == expected[1] and found[0] != expected[0]


def test_a_server_that_reads_otherwise_than_the_tokenizer_that_is_named(sides):
    explicit, teacher, student = sides
    serving = ModelServer(Table(explicit), student.tokenizer)
    about = TeacherArgs(model="teacher", tokenizer="./theirs", server=SERVER)
    with FaultyServer(serving.handlers) as server:
        remote, _ = served(explicit, server.url, 2)
        with (
            remote, served_otherwise(about),
            pytest.raises(TokenizerMismatchError, match="other tokens") as plain,
        ):  # fmt: skip
            remote.check(teacher.tokenizer, longest=9)
        with (
            pytest.raises(TokenizerMismatchError, match=r"another tokenizer than `./theirs`"),
            served_otherwise(about),
        ):
            raise plain.value


@pytest.mark.parametrize(
    ("teacher", "cross", "message"),
    [
        ({}, {"method": "gold"}, "names its likeliest tokens. Use `method: span`"),
        ({}, {"check": 200}, r"cross_tokenizer.check: 200` does not go with `\S*teacher.server`"),
        ({"tempered": 2.0}, {}, r"teacher.tempered: 2` does not go with `cross_tokenizer`"),
        ({"tokenizer": "t"}, None, r"teacher.tokenizer` is read with `cross_tokenizer` only"),
    ],
)
@pytest.mark.parametrize("captured", [False, True])
def test_what_does_not_go_with_a_server(teacher, cross, message, captured):
    teacher = {"model": "t", "server": SERVER, **teacher}
    block = {"capture": {"teacher": teacher, "output": "o"}} if captured else {"teacher": teacher}
    if cross is not None:
        block["cross_tokenizer"] = cross
    if not captured and "tempered" in teacher:
        message = "`temperature: 1` cannot be had from a server"
    if captured and cross == {"method": "gold"}:
        message = "`cross_tokenizer.method: gold` does not go with `capture`"
    with pytest.raises(ConfigError, match=message):
        parse_distill(block)


def test_a_tokenizer_is_read_of_a_server_alone():
    with pytest.raises(ConfigError, match="`tokenizer: t` is not read without `server`"):
        parse_distill({"teacher": {"model": "m", "tokenizer": "t"}, "cross_tokenizer": {}})
    with pytest.raises(ValueError, match="what a teacher writes is text"):
        Recipe.model_validate({"teacher": {"model": "m", "server": SERVER, "tokenizer": "t"}})
    args = parse_distill(
        {"teacher": {"model": "m", "server": SERVER, "tokenizer": "t"}, "cross_tokenizer": {}}
    )
    assert args.teacher.reads_with == "t"
