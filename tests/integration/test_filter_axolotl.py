"""The real Axolotl reads a filtered dataset as it is, in every format."""

from itertools import islice

import pytest
import yaml
from axolotl.cli.config import load_cfg
from axolotl.utils.dict import DictDefault
from support.axolotl_run import BASE
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.run import Filter
from axolotl_distill.host.datasets.types import resolve_types
from axolotl_distill.host.tokenise import tokenised

# name: settings of the filter, and what is added to the entries that the card suggests
DATASETS = {
    "parquet": ({"shard_rows": 20}, {}),
    "jsonl": ({"file": "jsonl", "shard_rows": 20}, {}),
    "field": ({"reasoning": "field"}, {"chat_template": "qwen3"}),
    "alpaca": ({"format": "alpaca"}, {}),
    "system": ({"format": "alpaca"}, {"type": "alpaca_w_system"}),
    "completion": ({"format": "prompt_completion"}, {}),
}


def chat(prompt, sample):
    return [
        {"role": "system", "content": "Add {carefully}."},
        {"role": "user", "content": f"What is {prompt} plus {{one}}?"},
        {
            "role": "assistant",
            "content": f"<think>\nOne more, try {sample}.\n</think>\n\nIt is {prompt + 1}.",
        },
    ]


CHATS = [chat(prompt, sample) for prompt in range(25) for sample in range(2)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = [
        trajectory(n // 2, n % 2, messages=messages, content=answer["content"])
        for n, (*messages, answer) in enumerate(CHATS)
    ]
    return write_trajectories(tmp_path_factory.mktemp("trajectories"), rows)


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_llama_dir, source):
    """{name: [(all text, supervised text)]}; all entries in one config, which is one run."""
    folder = tmp_path_factory.mktemp("axolotl")
    entries, sizes = [], []
    for name, (settings, entry) in DATASETS.items():
        report = Filter(FilterArgs(output=str(folder / name), **settings), source).run()
        card = (folder / name / "README.md").read_text()
        suggested = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
        for split, key in (("train", "datasets"), ("eval", "test_datasets")):
            (given,) = suggested[key]
            assert given["split"] == split and given["path"] == f"./{name}"
            ours = given["type"] == "axolotl_distill.trajectories"
            assert ours == (suggested.get("plugins") == ["axolotl_distill"])
            assert ours == ("format" not in settings)
            entries.append({**given, "path": str(folder / name), **entry})
            sizes.append((name, report["rows"][split]))
    config = {
        **BASE,
        "plugins": ["axolotl_distill"],
        "distill": {"teacher": "text"},
        "base_model": str(tiny_llama_dir),
        "output_dir": str(folder / "out"),
        "sequence_len": 512,
        "datasets": entries,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    cfg = load_cfg(str(folder / "config.yml"))
    read = {name: [] for name in DATASETS}
    entries = [DictDefault(entry) for entry in entries]
    resolve_types(entries)
    with tokenised(cfg, entries, folder) as (rows, tokenizer):
        texts = (
            (
                tokenizer.decode(row["input_ids"]),
                tokenizer.decode([label for label in row["labels"] if label != -100]),
            )
            for row in rows
        )
        for name, size in sizes:
            read[name] += islice(texts, size)
        assert next(texts, None) is None
    return read


@pytest.mark.parametrize("name", ["parquet", "jsonl"])
def test_messages(found, tokenizer, name):
    expected = {
        (tokenizer.apply_chat_template(each, tokenize=False), each[-1]["content"] + "<|im_end|>")
        for each in CHATS
    }
    assert len(found[name]) == len(CHATS) and set(found[name]) == expected


@pytest.mark.parametrize(("name", "system"), [("alpaca", 0), ("system", 1), ("completion", 1)])
def test_other_formats(found, name, system):
    learnt = set()
    for whole, answer in found[name]:
        assert "plus {one}?" in whole and ("Add {carefully}." in whole) == system
        learnt.add(answer)
    assert learnt == {each[-1]["content"] + "<|im_end|>" for each in CHATS}


def test_reasoning_in_its_field(tmp_path, found, smollm2_dir, source):
    """Qwen3's template writes it; Axolotl masks the opening tag, which the template always gives.

    SmolLM2's knows nothing of it, and the filter says so.
    """
    assert len(found["field"]) == len(CHATS)
    for whole, learnt in found["field"]:
        assert "assistant\n<think>\nOne more, try " in whole
        assert "One more, try " in learnt and "\n</think>\n\nIt is " in learnt
    said = []
    args = FilterArgs(output=str(tmp_path / "d"), reasoning="field", tokenizer=str(smollm2_dir))
    Filter(args, source, warn=said.append).run()
    assert any("leaves the thinking of 50 rows out" in text for text in said)
