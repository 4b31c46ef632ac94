"""`--executor ray` on a local Ray cluster: the rows of the local executor, whatever happens."""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from support.faulty_server import FaultyServer
from support.recipes import CHAT, Recipe, say
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.cli import distill
from axolotl_distill.filter import ray_executor
from axolotl_distill.filter.step import STEPS

pytestmark = pytest.mark.usefixtures("cluster")


def key_of(row):
    return row["id"], row["content"], json.dumps(row["meta"], sort_keys=True)


def test_generate_gives_the_same_rows(tmp_path):
    """With rate limits on the way; a second run over more prompts asks only for the new ones."""
    tries = Counter()

    def faults(number, path, body):
        tries[body["seed"]] += 1
        return "429" if tries[body["seed"]] == 1 and body["seed"] % 5 == 0 else None

    with FaultyServer({CHAT: say}, faults) as server:
        for name in ("local", "ray"):
            (tmp_path / name).mkdir()
            recipe = Recipe(tmp_path / name, server.url, 30, n=2)
            done = recipe.run("--executor", name)
            assert done.exit_code == 0, done.output
            assert "60 of 60 completions" in done.output
        rows = recipe.rows()
        parts = {path.name for path in recipe.output.glob("part-*.jsonl")}
        local = Recipe(tmp_path / "local", server.url, 30, n=2).rows()
        assert sorted(map(key_of, rows)) == sorted(map(key_of, local))

        answered = len(server.answered)
        recipe.prompts(34)
        done = recipe.run("--executor", "ray")
        assert done.exit_code == 0 and "68 of 68 completions" in done.output
        assert len(server.answered) == answered + 8
        assert len(recipe.rows()) == len({row["id"] for row in recipe.rows()}) == 68
        assert {path.name for path in recipe.output.glob("part-*.jsonl")} > parts


def test_generate_holds_one_budget_for_all_workers(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 60, max_tokens=30, budget={"tokens": 2400})
        done = recipe.run("--executor", "ray")
        assert done.exit_code == 0 and "budget is used up" in done.output, done.output
        spent = sum(sum(row["usage"].values()) for row in recipe.rows())
        assert 1000 < spent <= 2400
        assert len(recipe.rows()) == len(server.answered)


def test_generate_stops_everywhere_after_a_fatal_answer(tmp_path):
    def chat(body):
        if body["messages"][-1]["content"] == "question 9":
            return 401, {"error": {"message": "bad key"}}
        return say(body)

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(tmp_path, server.url, 400, server={"concurrency": 4})
        done = recipe.run("--executor", "ray")
        assert done.exit_code == 1 and "bad key" in done.output, done.output
        assert "Traceback" not in done.output and "The same command" in done.output
        assert len(recipe.rows()) == len(server.answered) < 399


def test_a_dead_worker_doubles_nothing(tmp_path):
    """Its batch is not asked again in the same run; the next run asks for what is missing."""
    killed = []

    def chat(body):
        if body["messages"][-1]["content"] == "question 30" and not killed:
            killed.append(kill_a_worker())
        return say(body)

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(
            tmp_path, server.url, 60, server={"concurrency": 2}, budget={"tokens": 10_000_000}
        )
        done = recipe.run("--executor", "ray")
        assert killed and done.exit_code == 1 and "worker of the Ray cluster died" in done.output
        kept = [row["id"] for row in recipe.rows()]
        assert 0 < len(kept) < 60
        assert recipe.run("--executor", "ray").exit_code == 0
    rows = [row["id"] for row in recipe.rows()]
    assert len(rows) == len(set(rows)) == 60


def kill_a_worker():
    """SIGKILL to a process of ours that Ray calls after the worker's class."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                process.kill()
                return process.pid
    raise AssertionError([p.cmdline() for p in psutil.Process().children(recursive=True)])


def test_generate_says_what_a_worker_could_not_load(tmp_path):
    recipe = Recipe(tmp_path, "http://127.0.0.1:9/v1", 4)
    del recipe.values["teacher"]["server"]
    recipe.values["teacher"] = {"model": str(tmp_path / "SmolLM2-nothing")}
    done = recipe.run("--executor", "ray")
    assert done.exit_code == 1 and "(`teacher.model`) cannot be loaded" in done.output, done.output
    assert "Traceback" not in done.output


def test_filter_gives_the_same_rows(tmp_path):
    rows = [
        trajectory(
            prompt,
            sample,
            content=f"<think>\nhm {prompt}\n</think>\n\nIt is \\boxed{{{prompt + sample % 2}}}.",
            meta={"answer": str(prompt)},
        )
        for prompt in range(25)
        for sample in range(4)
    ]
    write_trajectories(tmp_path / "trajectories", rows, parts=3)
    found = {}
    for name in ("local", "ray"):
        recipe = {
            "teacher": {"model": "teacher"},
            "generate": {"prompts": ["unused.jsonl"], "output": str(tmp_path / "trajectories")},
            "filter": {
                "output": str(tmp_path / name),
                "steps": [
                    {"verify": {"method": "math"}},
                    {"length": {"max_chars": 10_000}},
                    {"deduplicate": {"within": "prompt"}},
                ],
            },
        }
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump(recipe))
        done = CliRunner().invoke(distill, ["filter", str(path), "--executor", name])
        assert done.exit_code == 0, done.output
        kept = [
            row
            for file in sorted((tmp_path / name / "data").glob("*.parquet"))
            for row in pq.read_table(file).to_pylist()
        ]
        report = json.loads((tmp_path / name / "report.json").read_text())
        found[name] = (kept, report["steps"])
    assert found["local"] == found["ray"]
    assert len(found["ray"][0]) == 25


@pytest.mark.parametrize(
    ("kind", "there", "said"),
    [
        ("verify", {"method": "exact"}, "`verify` reads the column 'answer'"),
        ("language", {"allow": ["xx"]}, "`language.allow` names xx"),
    ],
)
def test_filter_says_what_stops_a_worker(tmp_path, monkeypatch, kind, there, said):
    """In our words and not inside Ray's, for a step that fails and one that cannot be built."""
    rows = [trajectory(n, meta={"answer": "0"}) for n in range(40)]
    rows[30]["meta"] = {}
    settings = {"method": "exact"} if kind == "verify" else {}
    recipe = {
        "teacher": {"model": "teacher"},
        "generate": {"prompts": ["unused.jsonl"], "output": str(tmp_path / "trajectories")},
        "filter": {"output": str(tmp_path / "dataset"), "steps": [{kind: settings}]},
    }
    write_trajectories(tmp_path / "trajectories", rows)
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    # A node that is not like this machine.
    monkeypatch.setattr(
        ray_executor,
        "_for_one_worker",
        lambda plan: replace(plan, args=STEPS[kind].Args.model_validate(there)),
    )
    done = CliRunner().invoke(
        distill, ["filter", str(tmp_path / "recipe.yml"), "--executor", "ray"]
    )
    assert done.exit_code == 1 and said in done.output, done.output
    assert "Traceback" not in done.output and "UserCode" not in done.output
    assert not (tmp_path / "dataset").exists()
