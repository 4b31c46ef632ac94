"""Rows that name their teacher: whatever type makes them, beside every token; and those that name
none, before one is tokenised."""

import numpy as np
import pytest
from axolotl.loaders import load_tokenizer
from axolotl.prompt_strategies import load as load_strategy
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from support.axolotl_run import BASE

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.datasets.told import MODULE, Told, chosen_of, tell
from axolotl_distill.host.datasets.types import CARRIER, resolve_types, thinking_of
from axolotl_distill.host.telling import check_told, told_of
from axolotl_distill.rollout.repack import prompts_of, repacked
from axolotl_distill.rollout.writer import Completion
from axolotl_distill.signal.batch import IGNORE

pytestmark = pytest.mark.axolotl


def named_by(column, *names):
    return Told(column, names, (None,) * len(names))


TOLD = named_by("domain", "math", "code", "1", "true")
MAPPING = {"field_instruction": "instruction", "field_output": "output", "format": "{instruction}"}
TYPES = {
    "chat_template": 8,
    "axolotl_distill.chat": 8,
    "axolotl_distill.trajectories": 8,
    "alpaca": 8,
    "alpaca_chat.load_qa": 8,
    "completion": 12,
}


@pytest.fixture
def cfg(tiny_llama_dir):
    return DictDefault(
        {**BASE, "base_model": str(tiny_llama_dir), "tokenizer_config": str(tiny_llama_dir),
         "sequence_len": 64, "chat_template": "tokenizer_default", "train_on_inputs": True}
    )  # fmt: skip


def raw(domains):
    return Dataset.from_list(
        [
            {
                "instruction": f"Say {n}.", "question": f"Say {n}.", "input": "",
                "output": f"{n}!", "answer": f"{n}!", "domain": domain,
                "text": f"One of {n}. " * (60 if n == 1 else 1),
                "messages": [
                    {"role": "user", "content": f"Say {n}."},
                    {"role": "assistant", "content": f"{n}!"},
                ],
            }
            for n, domain in enumerate(domains)
        ]
    )  # fmt: skip


def made(cfg, kind, domains, told=TOLD):
    entry = DictDefault({"path": "rows.jsonl", "type": kind})
    resolve_types([entry])
    tell([entry], told)
    assert entry.type == MODULE
    strategy = load_strategy(entry.type, load_tokenizer(cfg), cfg, entry)
    rows = domains if isinstance(domains, Dataset) else raw(domains)
    return strategy.wrap_dataset(rows, process_count=1)


@pytest.mark.parametrize("kind", [*TYPES, MAPPING], ids=[*TYPES, "a mapping"])
def test_any_type_of_text(cfg, kind):
    domains = ["math", "code", "code", "math", "1", "math", "true", "code"]
    rows = made(cfg, kind, domains)
    tokenizer = load_tokenizer(cfg)
    for row in rows:
        ids, chosen = row["input_ids"], row["teacher_choice"]
        assert len(chosen) == len(ids) == len(row["labels"]) > 0 and len(set(chosen)) == 1
        text = tokenizer.decode(ids)
        (n,) = [n for n in range(8) if f"{n}!" in text or f"of {n}." in text]
        assert TOLD.names[chosen[0]] == domains[n]
    counts = np.bincount(chosen_of(rows.with_format("arrow")[:]), minlength=4)
    # `completion` makes several rows of a text longer than `sequence_len`.
    longer = len(rows) - 8
    assert longer > 3 if kind == "completion" else longer == 0
    assert counts.tolist() == [3, 3 + longer, 1, 1]


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 1, 1], 2), ([True, True, True], 3)], ids=["number", "boolean"]
)
def test_a_value_is_what_yaml_writes_so(cfg, values, expected):
    rows = made(cfg, "chat_template", values)
    assert {number for row in rows for number in row["teacher_choice"]} == {expected}


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (
            ["math", "Math", "code", "Math"],
            r"rows.jsonl, row 2: `domain` is 'Math', and none of `distill.teacher.choices` is "
            r"called so; did you mean 'math'\? They are 'math', 'code', '1', 'true'. That is so of "
            r"2 of its 4 rows",
        ),
        (["math", None, "code"], "row 2: `domain` is missing"),
        (["math", "", "code"], "row 2: `domain` is ''"),
        (["math", " math"], "row 2: `domain` is ' math'.* did you mean 'math'"),
        ([["math"], ["code"]], r"row 1: `domain` is \['math'\]"),
        ([1.0, 2.0], "row 1: `domain` is 1.0"),
        ([1, 0], "row 2: `domain` is 0"),
        ([True, False], "row 2: `domain` is False"),
        ([{"a": 1}], "row 1: `domain` is {'a': 1}"),
    ],
)
def test_rows_that_name_no_teacher(cfg, domains, said):
    with pytest.raises(ConfigError, match=said):
        made(cfg, "chat_template", domains)


def test_rows_without_the_column(cfg):
    said = r"rows.jsonl has no column `kind`.* Its columns are instruction, .*domain.*messages"
    with pytest.raises(ConfigError, match=said):
        made(cfg, "chat_template", ["math"], named_by("kind", "a", "b"))


def test_a_type_with_rows_of_its_own_is_refused(cfg):
    with pytest.raises(ConfigError, match="is read by Axolotl in a way of its own"):
        made(cfg, "messages", ["math"])


def test_other_choices_are_other_rows_to_the_cache():
    def key(told, kind="chat_template", **entry):
        entry = DictDefault({"path": "x", "type": kind, **entry})
        resolve_types([entry])
        tell([entry], told)
        return entry

    keys = {
        key(told, kind)[CARRIER]
        for told in (named_by("d", "a", "b"), named_by("d", "b", "a"), named_by("e", "a", "b"))
        for kind in ("chat_template", "alpaca")
    }
    assert len(keys) == 6
    thinking = key(named_by("d", "a", "b"), "axolotl_distill.trajectories", thinking=0.3)
    assert thinking_of(thinking) == 0.3


def row(ids, choice, prompt=2):
    labels = [IGNORE] * prompt + ids[prompt:]
    return {
        "input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids),
        "position_ids": list(range(len(ids))), "teacher_choice": [choice] * len(ids),
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["packed", "right", "left"])
def test_a_batch_has_the_teacher_at_what_predicts(tokenizer, layout):
    tokenizer.padding_side = "left" if layout == "left" else "right"
    packed = layout == "packed"
    base = V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq
    collate = TeacherCollator(
        tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0, chosen=True
    )
    # Truncated by Axolotl, which knows nothing of the column.
    rows = [row(list(range(5, 12)), 1), row(list(range(20, 24)), 0)]
    rows[0]["teacher_choice"] += [1, 1]
    batch = collate([rows] if packed else rows)
    chosen, targets = batch["teacher_choice"], batch["shift_labels"]
    assert chosen.shape == targets.shape and chosen.dtype.is_signed
    assert ((chosen >= 0) == (targets != IGNORE)).all()
    assert targets[chosen == 1].tolist() == list(range(7, 12))
    assert targets[chosen == 0].tolist() == [22, 23]
    assert "teacher_choice" not in TeacherCollator(
        tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0
    )([rows] if packed else rows)


def test_prepared_rows_that_tell_nothing_are_refused(cfg):
    args = parse_distill({"teacher": {"column": "d", "choices": {"a": "x", "b": "y"}}})
    rows = Dataset.from_list([row([4, 5, 6], 0), row([4, 5, 6, 7], 1)])
    check_told({"training set": rows, "evaluation set": None}, cfg, args)
    without = rows.remove_columns("teacher_choice")
    with pytest.raises(ConfigError, match="The rows of the evaluation set tell their teacher noth"):
        check_told({"training set": rows, "evaluation set": without}, cfg, args)
    check_told({"training set": without}, cfg, parse_distill({"teacher": "x"}))


SEEN = {"self": True, "context_column": "answer"}
HINT = "<|im_start|>system\nIt is {answer}<|im_end|>\n"


def told_from(teacher):
    return told_of(parse_distill({"teacher": teacher}))


ONE_SEES = {"column": "domain", "choices": {"math": SEEN, "code": "./m"}}


@pytest.mark.parametrize("kind", ["chat_template", "alpaca", "completion"])
def test_a_row_brings_what_only_its_teacher_reads(cfg, kind):
    rows = made(cfg, kind, ["math"] * 8, told_from({**SEEN, "context": HINT}))
    tokenizer = load_tokenizer(cfg)
    assert "teacher_choice" not in rows.column_names and len(rows) >= 8
    for each in rows:
        text = tokenizer.decode(each["input_ids"])
        (n,) = [n for n in range(8) if f"{n}!" in text or f"of {n}." in text]
        expected = tokenizer(HINT.replace("{answer}", f"{n}!"), add_special_tokens=False)
        assert each["teacher_context"] == expected["input_ids"]


def test_of_several_teachers_one_may_read_more(cfg):
    told = told_from(ONE_SEES)
    assert told.contexts == (("answer", None), None)
    domains = ["math", "code", "math", "code"]
    tokenizer = load_tokenizer(cfg)
    for each, domain in zip(made(cfg, "chat_template", domains, told), domains, strict=True):
        seen = tokenizer.decode(each["teacher_context"])
        assert bool(seen) is (domain == "math") is (each["teacher_choice"][0] == 0)
        assert not seen or seen in tokenizer.decode(each["input_ids"])


@pytest.mark.parametrize("values", [["a", None], ["a", ""], ["a", " \n"], [3, 4], [["a"], ["b"]]])
def test_a_row_without_a_text_for_its_teacher(cfg, values):
    rows = raw(["math", "code"]).remove_columns("answer").add_column("answer", values)
    with pytest.raises(ConfigError, match=r"rows.jsonl, row [12]: `answer` is .* text is expected"):
        made(cfg, "chat_template", rows, told_from(SEEN))
    if values[0] == "a":
        # One that is not that teacher's needs none.
        assert len(made(cfg, "chat_template", rows, told_from(ONE_SEES))) == 2


def test_rows_without_the_context_s_column(cfg):
    said = r"has no column `solution`, which `distill.teacher` says holds .*\(`context_column`\)"
    told = told_from({"self": True, "context_column": "solution"})
    with pytest.raises(ConfigError, match=said):
        made(cfg, "chat_template", ["math"], told)


def test_a_context_that_leaves_no_room_is_refused(cfg):
    rows = made(cfg, "chat_template", ["math"] * 3, told_from(SEEN))
    args = parse_distill({"teacher": SEEN})
    check_told({"training set": rows}, cfg, args)
    cfg.sequence_len = 511
    with pytest.raises(ConfigError, match=r"row of the training set that begins .* 512 positions"):
        check_told({"training set": rows}, cfg, args)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"model": "x", "context_column": "a"}, "`context_column: a` is read by `self: true` only"),
        ({"self": True, "context_column": "a", "context": "{b}"}, "`context` has no {a}"),
        ({"self": True, "context_column": ""}, "context_column"),
        ({"self": True, "weights": "now"}, "Set `context` or `context_column`"),
    ],
)
def test_what_is_no_context(teacher, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill({"teacher": teacher})
    assert parse_distill({"teacher": SEEN}).teacher.own_weights == "now"


@pytest.mark.parametrize("layout", ["packed", "right", "left"])
def test_prompts_and_their_completions_keep_what_was_told(tokenizer, layout):
    """Through the batch, out of it as prompts, and into the batch of what was written."""
    tokenizer.padding_side = "left" if layout == "left" else "right"
    packed = layout == "packed"
    base = V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq
    collate = TeacherCollator(
        tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0, chosen=True, shown=True
    )
    told = {5: (1, [90, 91, 92]), 20: (0, []), 40: (1, [93])}
    rows = []
    for first, (choice, context) in told.items():
        rows.append({**row(list(range(first, first + 6)), choice), "teacher_context": context})
    if not packed:
        for each in rows:
            del each["position_ids"]
    batches = [collate([some] if packed else some) for some in (rows[:2], rows[2:])]
    assert batches[0]["teacher_context"].shape == batches[0]["context_number"].shape
    prompts = prompts_of(batches)
    assert {p.ids[0]: (p.choice, p.context) for p in prompts} == told
    # Packed, the longest completion goes first and may go into another micro-batch.
    written = [(p, Completion([7] * (3 * n + 1), True)) for n, p in enumerate(prompts)]
    made, placed = repacked(batches, written, collate, packed=packed, sequence_len=24)
    assert len(placed) == 3
    again = prompts_of(made)
    assert {p.ids[0]: (p.choice, p.context) for p in again} == told


def test_a_batch_of_nothing_to_read(tokenizer):
    collate = TeacherCollator(
        tokenizer, base_cls=DataCollatorForSeq2Seq, packed=False, stores=[], temperature=1.0,
        shown=True,
    )  # fmt: skip
    bare = {k: v for k, v in row([5, 6, 7], 0).items() if k != "position_ids"}
    batch = collate([{**bare, "teacher_context": []}])
    assert batch["teacher_context"].tolist() == batch["context_number"].tolist() == [[-1]]
    assert [prompt.context for prompt in prompts_of([batch])] == [[]]
