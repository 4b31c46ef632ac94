"""A filter over rows that no `generate` wrote."""

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.cli import distill_here
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.filter.rows import read_rows

CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SYSTEM = {"role": "system", "content": "Be brief."}
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "2+2?"},
    {"from": "gpt", "value": "4"},
]


def lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt") as file:
        file.write(text)
    return path


@pytest.mark.parametrize(
    ("row", "messages", "meta"),
    [
        ({"messages": CHAT, "source": "x", "id": 7}, CHAT[:1], {"source": "x", "id": 7}),
        ({"messages": [SYSTEM, *CHAT]}, [SYSTEM, CHAT[0]], {}),
        ({"conversations": SHAREGPT}, [SYSTEM, CHAT[0]], {}),
        ({"messages": None, "conversation": SHAREGPT[1:]}, CHAT[:1], {"messages": None}),
        ({"instruction": "2+2?", "input": "", "output": "4", "n": 1}, CHAT[:1], {"n": 1}),
        ({"prompt": "2+2?", "completion": "4"}, CHAT[:1], {}),
        ({"question": "2+2?", "answer": "4", "system": "Be brief."}, [SYSTEM, CHAT[0]], {}),
    ],
)
def test_conversations(tmp_path, row, messages, meta):
    (found,) = read_rows(lines(tmp_path / "a.jsonl", [row]))
    assert (found["messages"], found["content"], found["meta"]) == (messages, "4", meta)


def test_thinking_apart_and_several_turns(tmp_path):
    chat = [*CHAT, {"role": "user", "content": "and 3+3?"}]
    chat.append({"role": "assistant", "content": "6", "reasoning_content": "3+3 is 6"})
    (found,) = read_rows(lines(tmp_path / "a.jsonl", [{"messages": chat}]))
    assert found["messages"] == chat[:3]
    assert (found["content"], found["reasoning_content"]) == ("6", "3+3 is 6")


def test_files_and_ids(tmp_path):
    """The same rows from every kind of file; a question that comes twice is one prompt."""
    other = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows = [{"messages": CHAT, "n": 1}, {"messages": other, "n": 2}, {"messages": CHAT, "n": 3}]
    found = list(read_rows(lines(tmp_path / "a.jsonl", rows)))
    first, second, third = (row["id"].rpartition("-") for row in found)
    assert first[0] == third[0] != second[0] and (first[2], third[2]) == ("0", "1")
    (tmp_path / "folder" / "data").mkdir(parents=True)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "folder" / "data" / "train-0.parquet")
    for path in (
        lines(tmp_path / "a.jsonl.gz", rows),
        tmp_path / "folder",
        tmp_path / "folder" / "data" / "train-0.parquet",
    ):
        assert [row["id"] for row in read_rows(path)] == [row["id"] for row in found]
        assert [row["meta"] for row in read_rows(path)] == [{"n": n} for n in (1, 2, 3)]


def test_a_saved_dataset(tmp_path):
    import datasets

    made = datasets.Dataset.from_list([{"messages": CHAT}])
    made.save_to_disk(str(tmp_path / "d"))
    assert [row["content"] for row in read_rows(tmp_path / "d")] == ["4"]
    datasets.DatasetDict(a=made, b=made).save_to_disk(str(tmp_path / "e"))
    with pytest.raises(TrajectoryError, match="splits a, b"):
        list(read_rows(tmp_path / "e"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": CHAT[:1]}, "end with an answer of the assistant"),
        ({"messages": []}, "has 0 messages"),
        ({"messages": "hello"}, "must be a list of messages"),
        ({"messages": [{"role": "user"}, CHAT[1]]}, "one is {'role': 'user'}"),
        ({"conversations": [{"from": 3, "value": "x"}]}, "both text"),
        ({"text": "hello \x1b"}, "holds no conversation: it has text"),
        ({}, "it has nothing"),
    ],
)
def test_rows_that_are_none(tmp_path, row, said):
    good, bad = read_rows(lines(tmp_path / "a.jsonl", [{"messages": CHAT}, row]))
    assert good["fault"] is None and bad["given"] == row
    reason, detail = bad["fault"]
    assert reason == "not a trajectory"
    assert "a.jsonl, row 2" in detail and said in detail


def test_files_that_are_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"messages": []}\n' * 99)[:-20])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{no}\n"))
    (tmp_path / "a.csv").write_text("a,b\n")
    for name, said in {
        "a.parquet": "cannot be read",
        "a.jsonl.gz": "a.jsonl.gz",
        "b.jsonl.gz": "line 1 is not a JSON object",
        "a.csv": "not read by its name",
        "nowhere": "holds no trajectories",
    }.items():
        with pytest.raises(TrajectoryError, match=said):
            list(read_rows(tmp_path / name))


def test_columns_that_json_has_not(tmp_path):
    def table(value):
        rows = pa.Table.from_pylist([{"messages": CHAT, "extra": value}])
        pq.write_table(rows, tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    (row,) = read_rows(table(datetime.date(2026, 1, 2)))
    assert row["meta"] == {"extra": "2026-01-02"}
    (row,) = read_rows(table(float("nan")))
    assert row["meta"] == {"extra": None}
    (row,) = read_rows(table(b"\xff"))
    assert "row 1 is not a trajectory: `extra` holds a bytes" in row["fault"][1]


def test_a_recipe_with_a_filter_alone(tmp_path):
    """From the command line; what it writes can be filtered again."""
    wrong = [CHAT[0], {**CHAT[1], "content": "5"}]
    rows = [{"messages": CHAT, "answer": "4"}, {"messages": wrong, "answer": "4"}]
    steps = [{"verify": {"method": "exact"}}]
    block = {"input": str(lines(tmp_path / "a.jsonl", rows)), "output": str(tmp_path / "d")}
    recipe = tmp_path / "r.yml"
    recipe.write_text(yaml.safe_dump({"filter": {**block, "steps": steps}}))
    report = json.loads(distill_here("filter", recipe, "--json").stdout)
    assert report["rows"] == {"input": 2, "train": 1, "eval": 0, "rejected": 1}
    assert "1 of 2 rows" in distill_here("filter", recipe).stdout
    again = {"input": str(tmp_path / "d"), "output": str(tmp_path / "e")}
    recipe.write_text(yaml.safe_dump({"filter": again}))
    distill_here("filter", recipe)
    (file,) = (tmp_path / "e" / "data").iterdir()
    assert pq.read_table(file)["messages"].to_pylist() == [CHAT]


def test_trajectories_are_read_as_they_are(tmp_path):
    source = write_trajectories(tmp_path / "t", [trajectory(0), trajectory(1)])
    assert [row["id"] for row in read_rows(source)] == ["p0-0", "p1-0"]
