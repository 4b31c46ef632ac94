"""A live teacher with another tokenizer: a batch's signal is, bit for bit, what a capture makes of
its rows, however they are batched."""

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from support.explicit import CASES, Explicit, byte_level

from axolotl_distill.align import Pair, pair_rows
from axolotl_distill.align.methods import METHODS
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.beside import SpanSignal
from axolotl_distill.capture.cross import CrossSource
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.crossing import Crossing, cross_findings
from axolotl_distill.host.datasets.types import CARRIED, CARRIER, READ_AS, READ_BY, weighs_thinking
from axolotl_distill.signal.entries import decode_entries

IGNORE = -100
BATCHED = {
    "padded": (DataCollatorForSeq2Seq, False, "right"),
    "padded left": (DataCollatorForSeq2Seq, False, "left"),
    "packed": (V2BatchSamplerDataCollatorForSeq2Seq, True, "right"),
}


@pytest.fixture(scope="module")
def sides():
    theirs, own, letters = CASES["both, across each other"]
    teacher, student = byte_level(*theirs), byte_level(*own)
    student.tokenizer.pad_token = student.tokenizer.eos_token
    return Explicit(teacher, letters, seed=1), teacher, student


def rows_of(sides):
    """Two turns; one that is learnt from its first token on; one that teaches nothing."""
    explicit, teacher, student = sides
    end_t, end_s = explicit.end, student.tokenizer.eos_token_id
    made = []
    for text in ("abcab", "cc", "bca"):
        there, here = teacher.cut([text])[0], student.cut([text])[0]
        made.append(
            {
                "teacher_input_ids": [end_t, *there, end_t],
                "teacher_labels": [IGNORE, *there, end_t],
                "input_ids": [end_s, end_s, *here, end_s],
                "labels": [IGNORE, IGNORE, *here, end_s],
            }
        )
    made[1]["input_ids"], made[1]["labels"] = (made[1][k][2:] for k in ("input_ids", "labels"))
    made[2]["labels"] = [IGNORE] * len(made[2]["labels"])
    made[2]["teacher_labels"] = [IGNORE] * len(made[2]["teacher_labels"])
    for row in made:
        row["attention_mask"] = [1] * len(row["input_ids"])
    return made


def surveyed(sides, rows):
    _, teacher, student = sides
    found = Survey(teacher, student)
    for row in rows:
        theirs, own = row["teacher_input_ids"], row["input_ids"]
        found.add(
            pair_rows(theirs, row["teacher_labels"], own, row["labels"], teacher, student),
            theirs, own,
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("how", "method"), [*((how, "span") for how in BATCHED), (next(iter(BATCHED)), "min_ed")]
)
def test_a_batch_gets_what_a_capture_stores(sides, how, method):
    explicit, teacher, student = sides
    rows = rows_of(sides)
    survey = surveyed(sides, rows)
    pair = Pair(teacher, student, survey.ends)
    doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
    mapping = METHODS[method](pair) if method in METHODS else None
    source = CrossSource(explicit, pair, doubtful, k=5, batch_tokens=64, mapping=mapping)
    expected = dict(source.records(dict(enumerate(rows)), {0, 1}))

    base, packed, side = BATCHED[how]
    student.tokenizer.padding_side = side
    collate = TeacherCollator(
        student.tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0, paired=True,
        return_tensors="pt",
    )  # fmt: skip
    order = [2, 1, 0]
    features = [{**rows[n], "position_ids": [*range(len(rows[n]["input_ids"]))]} for n in order]
    batch = collate([features] if packed else features)
    columns = {name: batch[name] for name in batch if name not in ("input_ids", "labels")}
    at = (batch["shift_labels"].flatten() != IGNORE).nonzero().flatten()

    beside = SpanSignal(explicit, 5, method)
    beside.settle(survey)
    said = beside.signal(columns, at, batch).distribution
    begin = 0
    for number in (1, 0):
        records = expected[number]
        longest = said.ids.shape[1]
        held = np.arange(longest) < records.lengths[:, None]
        entries = np.full(held.shape, -1, np.int32)
        entries[held] = records.entries.view(np.int32)
        stored = decode_entries(
            torch.from_numpy(entries), vocab_size=len(student), sampled=False, temperature=1.0,
            tail=torch.from_numpy(records.tail[:, 0]),
        )  # fmt: skip
        here = slice(begin, begin + len(records))
        assert torch.equal(said.ids[here], stored.ids)
        assert torch.equal(said.logprobs[here], stored.logprobs)
        assert torch.equal(said.tail_logprob[here], stored.tail_logprob)
        begin += len(records)
    assert begin == at.numel() > 0


def test_a_batch_that_teaches_nothing(sides):
    explicit, _, student = sides
    rows = rows_of(sides)
    collate = TeacherCollator(
        student.tokenizer, base_cls=DataCollatorForSeq2Seq, packed=False, stores=[],
        temperature=1.0, paired=True, return_tensors="pt",
    )  # fmt: skip
    batch = collate([rows[2]])
    beside = SpanSignal(explicit, k=5)
    beside.settle(surveyed(sides, rows))
    said = beside.signal(batch, torch.zeros(1, dtype=torch.int64), batch).distribution
    assert (said.ids == -1).all()


def test_thinking_keeps_its_weight_when_rows_are_read_for_two():
    entry = {
        "type": "axolotl_distill.host.datasets.paired",
        READ_AS: "axolotl_distill.trajectories",
        CARRIER: f"{CARRIED}0.5{READ_BY}x/None/None",
    }
    assert weighs_thinking([entry])


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"teacher": "self"}, "whose tokenizer is its own"),
        ({"teacher": {"model": "t", "server": {"base_url": "http://x/v1"}}}, "teacher.server"),
        ({"teacher": "t", "on_policy": {}}, "`on_policy` does not go"),
        ({"teacher": "t", "hidden_states": {}}, "`hidden_states` does not go"),
        ({"teacher": "t", "temperature": 2.0}, "known at T = 1 only"),
        ({"teacher": "t", "support": "renormalize"}, "is read for a store or a server only"),
        ({"cross_tokenizer": {"method": "span", "k": 8}}, "is not read with `teacher: store`"),
    ],
)
def test_what_does_not_go_with_it(block, said):
    block = {"cross_tokenizer": {"method": "span"}, **block}
    with pytest.raises(ConfigError, match=said):
        parse_distill(block)


def test_what_goes_with_it():
    args = parse_distill({"teacher": "t", "cross_tokenizer": {"k": 8}, "divergence": "jsd"})
    assert args.cross_tokenizer.k == 8


@pytest.mark.parametrize(
    ("cfg", "method", "keys"),
    [
        ({"fsdp_config": {"reshard_after_forward": True}}, "span", ["fsdp_config"]),
        ({"deepspeed": "zero3.json"}, "gold", ["deepspeed"]),
        ({"streaming": True}, "span", ["streaming"]),
        ({"torch_compile": True}, "span", []),
        ({"torch_compile": True}, "alm", ["torch_compile"]),
        ({"datasets": [{"path": "s", "type": "axolotl_distill.store"}]}, "uld", ["datasets"]),
    ],
)
def test_what_the_rest_of_a_config_may_not_have(cfg, method, keys):
    args = parse_distill({"teacher": "t", "cross_tokenizer": {"method": method}})
    assert [finding.key for finding in cross_findings(cfg, args)] == keys
    assert not [*cross_findings(cfg, parse_distill({"teacher": "t"}))]


def test_rows_of_another_type_are_not_taken_for_these(sides):
    """Axolotl's key of prepared rows has the type that is read for two, and not the one before."""
    args = parse_distill({"teacher": "m", "cross_tokenizer": {"method": "span"}})
    crossing = Crossing(args.teacher, args.cross_tokenizer, *sides[1:])
    carried = []
    for kind in ("chat_template", "alpaca"):
        entry = {"path": "rows.jsonl", "type": kind}
        crossing.read_too([entry])
        carried.append((entry["type"], entry[CARRIER]))
    assert carried[0][0] == carried[1][0] and carried[0][1] != carried[1][1]
