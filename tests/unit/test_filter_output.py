"""Formats, split, shards, and the folder they go to."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import trajectory

from axolotl_distill.errors import ConfigError, FilterError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.output.folder import DatasetFolder
from axolotl_distill.filter.output.formats import columns, formatter
from axolotl_distill.filter.output.shards import Shards
from axolotl_distill.filter.output.split import evaluation, prompt_key

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "How many?"}
WRITTEN = "<think>I count.\n\n</think>Four. "
TAGGED = "<think>\nI count.\n</think>\n\nFour. "


def made(row, **args):
    return formatter(FilterArgs(output="o", **args))(row)


def said(row, **args):
    return made(row, **args)["messages"][-1]


def test_messages():
    row = trajectory(messages=[SYSTEM, USER], content=WRITTEN)
    answer = {"role": "assistant", "content": TAGGED}
    assert made(row) == {"messages": [SYSTEM, USER, answer]}
    assert made(row, system="drop") == {"messages": [USER, answer]}
    assert said(row, reasoning="drop")["content"] == "Four. "
    assert said(row, reasoning="field") == {
        "role": "assistant",
        "content": "Four. ",
        "reasoning_content": "I count.",
    }
    apart = trajectory(content="Four.", reasoning_content="I count.")
    assert said(apart)["content"] == "<think>\nI count.\n</think>\n\nFour."
    opened_in_prompt = trajectory(content="I count.\n</think>\n\nFour.")
    assert said(opened_in_prompt) == said(apart)
    assert said(trajectory(content=" Four.\n"))["content"] == " Four.\n"
    assert "reasoning_content" not in said(trajectory(content="Four."), reasoning="field")


def test_alpaca_and_prompt_completion():
    row = trajectory(messages=[SYSTEM, USER], content=WRITTEN)
    alpaca = {"instruction": "How many?", "input": "", "output": TAGGED}
    assert made(row, format="alpaca") == {**alpaca, "system": "Be brief."}
    assert made(row, format="alpaca", system="drop") == alpaca
    both = made(row, format="prompt_completion", reasoning="drop")
    assert both == {"prompt": "Be brief.\n\nHow many?", "completion": "Four. "}
    for kind in ("alpaca", "prompt_completion"):
        assert set(columns(FilterArgs(output="o", format=kind))) == set(made(row, format=kind))
        turns = trajectory(messages=[USER, {"role": "assistant", "content": "4"}, USER])
        with pytest.raises(FilterError, match=f"p0-0.*{kind}.*format: messages"):
            made(turns, format=kind)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=200), st.floats(0.0, 0.9), st.integers(0, 3), st.data()
)
def test_split(prompts, share, seed, data):
    rows = [trajectory(prompt) for prompt in prompts]
    keys = np.asarray([prompt_key(row, seed) for row in rows], np.uint64)
    chosen = evaluation(keys, share)
    sides = {
        side: {p for p, c in zip(prompts, chosen, strict=True) if c == side} for side in (0, 1)
    }
    assert not sides[0] & sides[1]
    different = len(set(prompts))
    if share == 0:
        assert not sides[1]
    if share and different >= 20:
        assert sides[1]
    if different >= 2:
        assert sides[0]
    order = data.draw(st.permutations(range(len(rows))))
    assert (evaluation(keys[order], share) == chosen[order]).all()


def test_split_share_and_stability():
    keys = np.asarray([prompt_key(trajectory(prompt), 0) for prompt in range(4000)], np.uint64)
    chosen = evaluation(keys, 0.05)
    assert abs(chosen.mean() - 0.05) < 0.012
    some = np.arange(4000) % 3 == 0
    assert (evaluation(keys[some], 0.05) == chosen[some]).all(), "whatever else is there"
    other = np.asarray([prompt_key(trajectory(prompt), 1) for prompt in range(4000)], np.uint64)
    assert (evaluation(other, 0.05) != chosen).any()


def test_split_of_few_prompts():
    """From 20 prompts on one is held out however small the share; never all of them."""
    for count in (1, 2, 19, 20, 40):
        keys = np.asarray([prompt_key(trajectory(prompt), 0) for prompt in range(count)], np.uint64)
        assert evaluation(keys, 1e-9).sum() == (count >= 20)
        assert not evaluation(keys, 0.999999).all()


def test_same_text_same_key():
    row = trajectory(messages=[SYSTEM, USER])
    for text in ("how  many?", "How many?\n"):
        again = trajectory(7, messages=[{"role": "user", "content": text}])
        assert prompt_key(again, 0) == prompt_key(row, 0)
    assert prompt_key(trajectory(1), 0) != prompt_key(trajectory(2), 0)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("count", [0, 1, 4, 9, 3000])
def test_shards(tmp_path, kind, count):
    schema = pa.schema({"id": pa.string(), "n": pa.int64()})
    rows = [{"id": f"é{i}", "n": i} for i in range(count)]
    size = 4 if count < 100 else 2000
    shards = Shards(tmp_path, schema, kind, shard_rows=size)
    for row in rows:
        shards.write(row)
    files = shards.close("train-abc")
    assert shards.rows == count and len(files) == -(-count // size)
    read, sizes = [], []
    for file in files:
        if kind == "parquet":
            part = pq.read_table(file).to_pylist()
            assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
        else:
            lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            part = [json.loads(line) for line in lines]
        read += part
        sizes.append(len(part))
    assert read == rows and all(number == size for number in sizes[:-1])
    assert sorted(tmp_path.iterdir()) == files
    if files:
        assert files[0].name.startswith(f"train-abc-00000-of-{len(files):05d}.")


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "made" / "dataset"
    for number in range(2):
        with DatasetFolder(path).build() as building:
            write(building, "report.json", f"data/train-{number}ab-00000-of-00001.parquet")
            assert number == 0 or (path / "data/train-0ab-00000-of-00001.parquet").exists()
    assert [file.name for file in (path / "data").iterdir()] == ["train-1ab-00000-of-00001.parquet"]
    with pytest.raises(OSError), DatasetFolder(path).build() as building:
        write(building, "report.json")
        raise OSError("the disk is full")
    assert len(list(path.iterdir())) == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["dataset"]


def test_what_a_killed_filter_left_is_removed(tmp_path):
    write(tmp_path, ".d.part/report.json", ".d.old/report.json")
    with DatasetFolder(tmp_path / "d").build() as building:
        assert list(building.iterdir()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.tex"],
        ["report.json", "data/mine.parquet"],
        ["report.json", "notes/a"],
        ["README.md"],
    ],
)
def test_foreign_folder_is_left_alone(tmp_path, names):
    write(tmp_path / "d", *names)
    with pytest.raises(ConfigError, match="no filter wrote"):
        DatasetFolder(tmp_path / "d")


def test_killed_between_the_two_renames(tmp_path):
    """The dataset is `.d.old` then, and nowhere else."""
    write(tmp_path, ".d.old/report.json", ".d.part/report.json", ".d.lock")
    with pytest.raises(OSError), DatasetFolder(tmp_path / "d").build():
        raise OSError("the disk is full")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "report.json").exists()


def test_the_folder_one_is_in_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (".", "..", "../here", "/"):
        with pytest.raises(ConfigError, match=r"filter\.output.*the folder this runs in"):
            DatasetFolder(path)
    assert DatasetFolder("../here/d").path == tmp_path / "here" / "d"
