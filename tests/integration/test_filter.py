"""`axolotl distill filter` from a recipe on disk to rows that the real Axolotl tokenises."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from support.axolotl_run import environment
from support.faulty_server import FaultyServer
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.errors import ConfigError, FilterError, TrajectoryError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.run import Filter

AXOLOTL = [sys.executable, "-m", "axolotl.cli.main", "distill", "filter"]
# The same command without Axolotl's own imports, which take most of its time.
FILTER = [sys.executable, "-c", "from axolotl_distill.cli import distill; distill()", "filter"]
TERMS = {
    "family": "Qwen 2.5",
    "verdict": "duties",
    "licence": "Qwen License",
    "duties": ['Display "Built with Qwen".'],
    "source": "https://example.org/terms",
    "checked": "2026-11-25",
    "agreement": None,
}


def answers(prompts=30, samples=4):
    """Prompt p's answer is p + 1. Samples: right, wrong, right in the same words, cut off."""
    for prompt in range(prompts):
        right = f"<think>\nOne more than {prompt}.\n</think>\n\nIt is \\boxed{{{prompt + 1}}}."
        texts = [right, right.replace("boxed{", "boxed{9"), right + " ", right[:20]]
        for sample in range(samples):
            yield trajectory(
                prompt,
                sample,
                messages=[{"role": "user", "content": f"What is {prompt} plus one?"}],
                content=texts[sample],
                finish_reason="length" if sample == 3 else "stop",
                meta={"answer": str(prompt + 1)},
            )


STEPS = [
    "format",
    {"verify": {"method": "math", "name": "right"}},
    "deduplicate",
    {"best_of_n": {"by": "right"}},
]


@pytest.fixture
def source(tmp_path):
    about = {
        "settings": {"teacher": {"name": "big-one"}, "temperature": 0.6},
        "prompts": [{"path": str(tmp_path / "prompts.jsonl")}],
        "n": 4,
    }
    return write_trajectories(tmp_path / "trajectories", answers(), 3, **about, terms=TERMS)


def cli(tmp_path, source, code=0, command=FILTER, **values):
    recipe = {
        "teacher": {"model": "big-one"},
        "generate": {"prompts": [{"path": "prompts.jsonl"}], "output": str(source)},
        "filter": {"output": str(tmp_path / "dataset"), **values},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [*command, str(tmp_path / "recipe.yml")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def test_hostile_code_does_not_take_the_filter_down(tmp_path):
    """Answers that hang, fork, eat memory, write without end or crash; the right ones are kept."""
    codes = {
        "right": "def add(a, b):\n    return a + b",
        "wrong": "def add(a, b):\n    return a - b",
        "hangs": "while True: pass",
        "forks": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "eats": "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "writes": "while True: print('x' * 100_000)",
        "kills": "import os, signal\nos.kill(0, signal.SIGKILL)",
        "exits": "import sys\nsys.exit(0)",
    }
    tests = {"fn_name": "add", "inputs": [[1, 2], [3, 5]], "outputs": [3, 8]}
    rows = [
        trajectory(
            name,
            sample,
            content=f"<think>\nHm.\n</think>\n\n```python\n{code}\n```",
            meta={"tests": tests},
        )
        for sample in range(2)
        for name, code in codes.items()
    ]
    source = write_trajectories(tmp_path / "trajectories", rows)
    limits = {"allow": True, "timeout": 1.5, "memory_mb": 256, "workers": 2}
    cli(tmp_path, source, steps=[{"verify": {"method": "code", **limits}}], max_drop=1.0)
    report = json.loads((tmp_path / "dataset" / "report.json").read_text())
    assert report["steps"][0]["rows"] == 16 and report["steps"][0]["kept"] == 2
    dropped = rejected(tmp_path / "dataset")
    assert Counter(row["id"] for row in dropped) == Counter(
        row["id"] for row in rows if not row["id"].startswith("pright")
    )
    assert all(row["reason"] for row in dropped)


def rejected(folder):
    return [
        row for file in (folder / "rejected").glob("*") for row in pq.read_table(file).to_pylist()
    ]


def test_end_to_end(tmp_path, source, smollm2_dir):
    settings = {"tokenizer": str(smollm2_dir), "sequence_len": 50, "max_drop": 0.3}
    done = cli(tmp_path, source, command=AXOLOTL, steps=STEPS, **settings)
    folder = tmp_path / "dataset"
    report = json.loads((folder / "report.json").read_text())
    counts = {step["name"]: (step["rows"], step["kept"]) for step in report["steps"]}
    assert counts == {
        "format": (120, 90), "right": (90, 60), "deduplicate": (60, 30), "best_of_n": (30, 30)
    }  # fmt: skip
    dropped = rejected(folder)
    assert Counter(row["step"] for row in dropped) == {"format": 30, "right": 30, "deduplicate": 30}
    by_reason = {(s["name"], r): n for s in report["steps"] for r, n in s["reasons"].items()}
    assert by_reason == Counter((row["step"], row["reason"]) for row in dropped)
    originals = {row["id"]: row for row in answers()}
    for row in dropped:
        if row["step"] == "deduplicate":
            assert re.match(rf"the same as {row['prompt_id']}-[02] ", row["detail"])
        kept = json.loads(row["row"])
        assert originals[row["id"]].items() <= kept.items()

    data = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(data) == {"train", "eval"}
    rows = {split: list(data[split]) for split in data}
    assert len(rows["train"]) + len(rows["eval"]) == 30 == 120 - len(dropped)
    assert not {r["prompt_id"] for r in rows["train"]} & {r["prompt_id"] for r in rows["eval"]}
    for row in rows["train"] + rows["eval"]:
        original = originals[row["id"]]
        assert row["messages"][:-1] == original["messages"]
        assert row["messages"][-1] == {"role": "assistant", "content": original["content"]}
        assert row["scores"] == {"right": 1.0}
    assert report["rows"] == {
        "input": 120, "train": len(rows["train"]), "eval": len(rows["eval"]), "rejected": 90
    }  # fmt: skip

    assert (folder / "tokens.png").read_bytes().startswith(b"\x89PNG")
    total = report["tokens"]["parts"]["total"]
    assert total["rows"] == 30 and total["min"] <= total["p50"] <= total["max"]
    assert report["tokens"]["past"] > 0 and "longer than 50" in done.stdout
    for line in ("format", "right", "deduplicate", "total", "thinking", "answer"):
        assert any(text.startswith(line) for text in done.stdout.splitlines())
    assert done.stderr.count("WARNING") == 4 and "verify.min_score" in done.stderr
    assert "The prompts cannot be read again" in done.stderr
    card = (folder / "README.md").read_text()
    for text in ("big-one", "Qwen License", 'Display "Built with Qwen".', "name: right", "0.6"):
        assert text in card
    assert str(tmp_path) not in card and str(smollm2_dir) not in card


def test_card_is_read_by_the_hub_library(tmp_path, source):
    from huggingface_hub import DatasetCard

    args = FilterArgs(output=str(tmp_path / "dataset"))
    Filter(args, source).run()
    card = DatasetCard.load(tmp_path / "dataset" / "README.md")
    assert card.data.license == "other" and card.data.license_name == "Qwen License"


def test_two_folders_of_one_name(tmp_path):
    """`datasets` keys its cache by the folder's name; the rows must be the folder's even so."""
    for where, prompts in (("a", 25), ("b", 30), ("a", 40)):
        source = write_trajectories(tmp_path / f"t{where}{prompts}", answers(prompts, 1))
        args = FilterArgs(output=str(tmp_path / where / "dataset"))
        Filter(args, source).run()
        data = load_dataset(args.output, cache_dir=str(tmp_path / "cache"))
        assert len(data["train"]) + len(data["eval"]) == prompts


def test_same_rows_same_bytes(tmp_path, source):
    made = []
    for name in ("a", "b"):
        args = FilterArgs(
            output=str(tmp_path / name), file="jsonl", shard_rows=17, steps=["format"]
        )
        Filter(args, source).run()
        files = sorted((tmp_path / name).glob("*/*"))
        made.append({file.name: file.read_bytes() for file in files})
    assert made[0] == made[1] and len(made[0]) > 6


def test_all_dropped(tmp_path, source):
    done = cli(
        tmp_path, source, code=1, steps=["format", {"length": {"min_chars": 999}}, "language"]
    )
    assert "`length` dropped the last 90" in done.stderr and "shorter than 999" in done.stderr
    assert "Step `length` dropped 90 of 90 rows (100%" in done.stderr
    folder = tmp_path / "dataset"
    assert len(rejected(folder)) == 120
    assert len(json.loads((folder / "report.json").read_text())["steps"]) == 2
    assert not (folder / "data").exists()
    Filter(FilterArgs(output=str(folder)), source).run()
    assert (folder / "README.md").exists() and not (folder / "rejected").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.pop("id"), "`id` must be"),
        (lambda row: row.pop("content"), "end with an answer of the assistant"),
        (lambda row: row.update(messages=[]), "`messages` must be"),
        (lambda row: row.update(messages=[{"role": "user"}]), "`role` and `content`"),
        (lambda row: row.update(meta=3), "`meta` must be"),
    ],
)
def test_unreadable_row(tmp_path, change, said):
    rows = list(answers(4))
    change(rows[9])
    source = write_trajectories(tmp_path / "t", rows, parts=2)
    report = Filter(FilterArgs(output=str(tmp_path / "d")), source).run()
    assert report["rows"]["rejected"] == 1 and "1 of 16 rows are put aside" in report["warnings"][0]
    (row,) = rejected(tmp_path / "d")
    assert re.match(rf"part-00001\.jsonl, row 5 .*{said}", row["detail"])
    assert json.loads(row["row"]) == rows[9], "as it was written"
    write_trajectories(tmp_path / "only", [rows[9]])
    with pytest.raises(TrajectoryError, match=rf"none of its 1 rows .*row 1 .*{said}"):
        Filter(FilterArgs(output=str(tmp_path / "e")), tmp_path / "only").run()
    assert not (tmp_path / "e").exists()


def test_minimal_rows(tmp_path):
    keys = ("id", "prompt_id", "messages", "content")
    rows = [{key: row[key] for key in keys} for row in answers()]
    source = write_trajectories(tmp_path / "t", rows)
    report = Filter(FilterArgs(output=str(tmp_path / "d"), steps=["format"]), source).run()
    assert report["rows"]["rejected"] == 30 and report["steps"][0]["reasons"] == {"no answer": 30}


def test_refused_before_anything_runs(tmp_path, source):
    steps = [{"verify": {"method": "math"}}, {"language": {"allow": ["klingon"]}}]
    with pytest.raises(ConfigError, match="klingon"):
        Filter(FilterArgs(output=str(tmp_path / "d"), steps=steps), source).run()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        Filter(FilterArgs(output=str(tmp_path / "d")), source).run()
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with (tmp_path / "trajectories" / "part-00009.jsonl").open("w") as file:
        file.write(json.dumps(trajectory(99, messages=turns)) + "\n")
    with pytest.raises(FilterError, match=r"p99-0.*several turns"):
        Filter(FilterArgs(output=str(tmp_path / "e"), format="alpaca"), source).run()
    assert not (tmp_path / "e").exists()


def test_template_without_system(tmp_path, source, tokenizer):
    """Gemma's template refuses system messages; that is found before a step runs."""
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    write_trajectories(tmp_path / "more", [trajectory(99, messages=chat)])
    (tmp_path / "more" / "part-00000.jsonl").rename(source / "part-00009.jsonl")
    args = {"output": str(tmp_path / "d"), "tokenizer": str(tmp_path / "tokenizer")}

    def executor(plan, rows):
        raise AssertionError("a step ran")

    with pytest.raises(FilterError, match=r"refuses row p99-0.*no system role.*system: drop"):
        Filter(FilterArgs(**args, steps=["format"]), source, executor=executor).run()
    report = Filter(FilterArgs(**args, system="drop"), source).run()
    assert report["rows"]["train"] + report["rows"]["eval"] == 121


def test_source_that_changes(tmp_path, source):
    """Rows that arrive while the filter runs would shift every verdict."""

    def executor(plan, rows):
        from axolotl_distill.filter.executor import map_rows

        with (source / "part-00000.jsonl").open("a") as file:
            file.write(json.dumps(trajectory(77)) + "\n")
        return map_rows(plan, rows)

    with pytest.raises(FilterError, match="changed while"):
        Filter(
            FilterArgs(output=str(tmp_path / "d"), steps=["format"]), source, executor=executor
        ).run()


def test_killed(tmp_path, source):
    """kill -9 in the middle of a judge: the old dataset stands, and no grade is paid for twice."""
    Filter(FilterArgs(output=str(tmp_path / "dataset")), source).run()
    before = {file: file.read_bytes() for file in (tmp_path / "dataset").glob("**/*.*")}

    def grade(body):
        return {"choices": [{"message": {"role": "assistant", "content": "Score: 7"}}]}

    hang = lambda number, *_: "hang" if number >= 40 else None  # noqa: E731
    with FaultyServer({"/v1/chat/completions": grade}, hang) as server:
        judge = {"model": "j", "server": {"base_url": server.url, "concurrency": 4}}
        recipe = {
            "teacher": {"model": "t"},
            "generate": {"prompts": [{"path": "p.jsonl"}], "output": str(source)},
            "filter": {"output": str(tmp_path / "dataset"), "steps": ["format", {"judge": judge}]},
        }
        (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
        child = subprocess.Popen([*FILTER, str(tmp_path / "recipe.yml")], env=environment())
        while len(server.requests) < 44:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert {file: file.read_bytes() for file in before} == before
        server.faults = lambda *_: None
        cli(tmp_path, source, steps=["format", {"judge": judge}])
        assert len(server.answered) == 90
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dataset", "dataset.answers", "recipe.yml", "trajectories"
    ]  # fmt: skip
    train = pq.read_table(next((tmp_path / "dataset" / "data").glob("train*"))).to_pylist()
    assert {row["scores"]["judge"] for row in train} == {7.0}
