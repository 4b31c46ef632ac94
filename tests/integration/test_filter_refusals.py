"""What a filter finds out before a step runs, so that no work is thrown away and no judge paid."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.errors import ConfigError, FilterError, TrajectoryError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.output.folder import DatasetFolder
from axolotl_distill.filter.run import Filter

JUDGE = {"model": "j", "server": {"base_url": "http://localhost:9/v1"}}


def no_step(plan, rows):
    raise AssertionError("a step ran")


def refused(tmp_path, error, match, rows=None, **values):
    source = write_trajectories(tmp_path / "t", rows or [trajectory()])
    args = FilterArgs(output=str(tmp_path / "d"), **values)
    with pytest.raises(error, match=match):
        Filter(args, source, executor=no_step).run()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("package", "steps"),
    [
        ("py3langid", [{"language": {"name": "english"}}]),
        ("datasketch", [{"deduplicate": {"method": "near", "name": "english"}}]),
        ("matplotlib", []),
    ],
)
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, tokenizer, package, steps):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    key = "steps: english" if steps else "tokenizer"
    said = rf"`filter\.{key}` needs the package {package}.*pip install"
    refused(tmp_path, ConfigError, said, steps=steps, tokenizer=tokenizer.name_or_path)


def test_packages_of_other_recipes_are_not_needed(tmp_path, monkeypatch):
    for package in ("py3langid", "datasketch", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    source = write_trajectories(tmp_path / "t", [trajectory()])
    report = Filter(FilterArgs(output=str(tmp_path / "d"), steps=["deduplicate"]), source).run()
    assert report["rows"]["train"] == 1


@pytest.mark.parametrize(
    ("key", "step"),
    [
        ("judge.reference", {"judge": {**JUDGE, "reference": "soluton"}}),
        ("verify.answer", {"verify": {"method": "math", "answer": ["solution", "soluton"]}}),
        ("verify.entry", {"verify": {"method": "reasoning_gym", "entry": "soluton"}}),
    ],
)
def test_a_column_that_is_not_there(tmp_path, key, step):
    rows = [trajectory(1, meta={"soluton": None}), trajectory(2, meta={"solution": "4"})]
    if key == "verify.answer":
        rows[0]["meta"]["solution"] = "3"
    said = rf"`{key}` names the column 'soluton'.*row p2-0 has solution\."
    refused(tmp_path, FilterError, said, rows, steps=["format", step])


def test_messages_with_more_than_role_and_content(tmp_path):
    """Names and calls of tools go into the dataset; what has no place there is said."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    chat = [
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "user", "content": "Well?", "tokens": 3},
    ]
    source = write_trajectories(
        tmp_path / "t", [trajectory(messages=chat), trajectory(1, messages=chat, content="")]
    )
    args = FilterArgs(output=str(tmp_path / "d"), steps=["format"])
    told = []
    report = Filter(args, source, warn=told.append).run()
    assert any("also have tokens, for which" in text for text in told)
    assert report["warnings"] == told
    (row,) = pq.read_table(next((tmp_path / "d" / "data").glob("*"))).to_pylist()
    keys = ("role", "content", "name", "tool_calls")
    assert row["messages"][:3] == [{key: m.get(key) for key in keys} for m in chat]
    (dropped,) = pq.read_table(next((tmp_path / "d" / "rejected").glob("*"))).to_pylist()
    assert json.loads(dropped["row"])["messages"] == chat


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(None, "`role` and `content`, both text"), ([{"type": "image_url"}], "part that is not text")],
)
def test_messages_without_text(tmp_path, content, wrong):
    chat = [{"role": "user", "content": content, "tool_calls": []}]
    said = rf"part-00000\.jsonl, row 1 .*{wrong}"
    refused(tmp_path, TrajectoryError, said, [trajectory(messages=chat)])


def test_another_filter_is_at_work(tmp_path):
    source = write_trajectories(tmp_path / "t", [trajectory()])
    args = FilterArgs(output=str(tmp_path / "d"), steps=["format"])
    with DatasetFolder(args.output).build() as building:
        (building / "report.json").write_text("{}")
        with pytest.raises(FilterError, match=r"/d is being written.*`filter\.output`"):
            Filter(args, source, executor=no_step).run()
        assert (building / "report.json").exists()
    Filter(args, source).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "t"]


def test_rows_that_are_put_aside(tmp_path):
    """Put aside one by one, with what to do; the others are filtered."""
    ambiguous = {"content": "Use it.", "reasoning_content": "It ends with </think> there."}
    call = {"function": {"name": "look", "arguments": '{"to": "Ul'}}
    rows = [
        trajectory(1),
        trajectory(2, **ambiguous),
        trajectory(3, message={"tool_calls": [call]}),
        trajectory(4, messages=[{"role": "user"}]),
        trajectory(5, sample="x"),
    ]
    source = write_trajectories(tmp_path / "t", rows, n=4)
    told = []
    report = Filter(FilterArgs(output=str(tmp_path / "d")), source, warn=told.append).run()
    assert report["rows"]["train"] == 1
    assert report["steps"][0]["reasons"] == {
        "cannot be read again from the dataset": 2,
        "not a trajectory": 2,
    }
    assert "4 of 5 rows are put aside" in told[0]
    (rejected,) = (tmp_path / "d" / "rejected").glob("*")
    details = [row["detail"] for row in pq.read_table(rejected).to_pylist()]
    assert "`filter.reasoning: field`" in details[0] and "are no JSON" in details[1]
    assert "row 4 is not" in details[2] and "`sample`" in details[3]
    kept = Filter(FilterArgs(output=str(tmp_path / "d"), reasoning="field"), source).run()
    assert kept["rows"]["train"] == 2
    text = FilterArgs(output=str(tmp_path / "d"), format="alpaca")
    rows = [trajectory(1), trajectory(2, tools=[{"name": "a"}])]
    tools = write_trajectories(tmp_path / "u", rows)
    with pytest.raises(FilterError, match=r"p2-0 has tools .* `format: alpaca` holds text only"):
        Filter(text, tools).run()
