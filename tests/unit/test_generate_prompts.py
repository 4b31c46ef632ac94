"""Prompts out of every kind of file, with stable ids."""

import gzip
import json
from datetime import date

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from axolotl_distill.config.generate import PromptsArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.generate.plan import plan
from axolotl_distill.generate.prompts import read_prompts

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i), "level": i} for i in range(7)]


def read(path, system=None, limit=None, **keys):
    return read_prompts([PromptsArgs(path=str(path), **keys)], system, limit)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_jsonl(folder):
    return write_jsonl(folder / "p.jsonl", ROWS)


def as_gzip(folder):
    with gzip.open(folder / "p.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n\n" for row in ROWS)
    return folder / "p.jsonl.gz"


def as_zstd(folder):
    with pa.output_stream(str(folder / "p.jsonl.zst"), compression="zstd") as file:
        file.write("\n".join(map(json.dumps, ROWS)).encode())
    return folder / "p.jsonl.zst"


def as_parquet(folder):
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "p.parquet")
    return folder / "p.parquet"


def as_saved_dataset(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder):
    whole = datasets.Dataset.from_list(ROWS)
    parts = {"test": whole.select([0]), "train": whole}
    datasets.DatasetDict(parts).save_to_disk(folder / "splits")
    return folder / "splits"


def as_folder(folder):
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "data" / "train-0.parquet")
    return folder / "data"


@pytest.mark.parametrize(
    "write",
    [as_jsonl, as_gzip, as_zstd, as_parquet, as_saved_dataset, as_saved_splits, as_folder],
)
def test_every_format_gives_the_same_prompts(tmp_path, write):
    prompts = read(write(tmp_path))
    assert [p.messages for p in prompts] == [
        [{"role": "user", "content": row["question"]}] for row in ROWS
    ]
    assert [p.meta for p in prompts] == [{"answer": r["answer"], "level": r["level"]} for r in ROWS]
    assert [p.id for p in prompts] == [p.id for p in read(as_jsonl(tmp_path))]
    assert len({p.id for p in prompts}) == len(ROWS)


def test_another_split_is_named(tmp_path):
    path = as_saved_splits(tmp_path)
    assert len(read(path, split="test")) == 1
    with pytest.raises(ConfigError, match=r"no split `dev`; it has test, train"):
        read(path, split="dev")


def test_columns(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a", "name": None}], "prompt": "b"},
        {"prompt": "b", "question": "c"},
        {"prompt": [{"role": "user", "content": "d"}]},
        {"instruction": "e", "input": "f", "output": "g"},
        {"instruction": "h", "input": ""},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    asked = [p.messages[-1]["content"] for p in read(path)]
    assert asked == ["a", "b", "d", "e\n\nf", "h"]
    assert read(path)[0].messages == [{"role": "user", "content": "a"}]
    assert read(path)[3].meta == {"output": "g"}
    assert read(path, limit=2, prompt="prompt")[0].messages[0]["content"] == "b"


def test_a_finished_chat_is_asked_again(tmp_path):
    """The dataset's own answer becomes a reference, not part of what is asked."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    prompt = read(write_jsonl(tmp_path / "p.jsonl", [{"messages": chat}]))[0]
    assert prompt.messages == chat[:1]
    assert prompt.meta == {"original_answer": "b"}


def test_repeated_prompts_have_ids_of_their_own(tmp_path):
    rows = [{"prompt": "a", "k": 1}, {"prompt": "b", "k": 2}, {"prompt": "a", "k": 3}]
    first, other, again = read(write_jsonl(tmp_path / "p.jsonl", rows))
    assert again.id == first.id + "-2" and other.id != first.id
    assert (first.meta["k"], again.meta["k"]) == (1, 3)
    # What came before stays what it was when more rows follow.
    more = read(write_jsonl(tmp_path / "p.jsonl", [*rows, {"prompt": "a"}]))
    assert [p.id for p in more[:3]] == [first.id, other.id, again.id]


def test_the_plan_is_what_is_not_done(tmp_path):
    prompts = read(as_jsonl(tmp_path), limit=2)
    todo = plan(prompts, 3, {f"{prompts[0].id}-1"})
    assert [(r.prompt.id, r.sample) for r in todo] == [
        (prompts[0].id, 0),
        (prompts[0].id, 2),
        *((prompts[1].id, sample) for sample in range(3)),
    ]
    seeds = {request.seed(0) for request in todo}
    assert len(seeds) == 5 and all(0 <= seed < 2**31 for seed in seeds)
    assert todo[0].seed(0) != todo[0].seed(1) and todo[0].seed(None) is None


def test_the_system_prompt_comes_first(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    plain, told = read(path)[0], read(path, system="Be brief.")[0]
    assert told.messages == [{"role": "system", "content": "Be brief."}, *plain.messages]
    assert told.id != plain.id
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}]
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": chat}])
    assert read(path)[0].messages == chat
    assert read(path, system="Be brief.")[0].messages == chat


def test_a_chat_that_ends_in_a_tool_call(tmp_path):
    chat = [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]},
    ]
    (prompt,) = read(write_jsonl(tmp_path / "p.jsonl", [{"messages": chat}]))
    assert prompt.messages == chat[:1]
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    assert prompt.meta == {"original_answer": None, "original_tool_calls": [call]}


def test_meta_is_plain_json(tmp_path):
    rows = [{"prompt": "a", "when": date(2026, 1, 2), "score": float("nan"), "deep": [{"x": 1.5}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    meta = read(tmp_path / "p.parquet")[0].meta
    assert meta == {"when": "2026-01-02", "score": None, "deep": [{"x": 1.5}]}


@pytest.mark.parametrize(
    ("rows", "keys", "says"),
    [
        ([{"text": "a", "id": 1}], {}, r"row 1: there is no prompt; it has text, id\. Name"),
        ([{"prompt": "a"}, {"prompt": None}], {}, r"row 2: there is no prompt"),
        ([{"prompt": "a"}], {"prompt": "asks"}, r"there is no `asks`; it has prompt"),
        ([{"prompt": " "}], {}, r"`prompt` is empty"),
        ([{"prompt": 7}], {}, r"`prompt` is a int"),
        ([{"messages": [{"from": "human", "value": "a"}]}], {}, r"list of messages \{role"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], {}, r"no message to answer"),
        ([{"messages": [{"role": "user", "content": None}]}], {}, r"has no `content`"),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path, rows, keys, says):
    with pytest.raises(ConfigError, match=says):
        read(write_jsonl(tmp_path / "p.jsonl", rows), **keys)


def test_files_that_are_none(tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na\n")
    with pytest.raises(ConfigError, match=r"p\.csv .*known are \.jsonl"):
        read(tmp_path / "p.csv")
    with pytest.raises(ConfigError, match=r"nowhere .*is no file"):
        read(tmp_path / "nowhere")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ConfigError, match=r"line 2 is not a JSON object"):
        read(tmp_path / "p.jsonl")
