"""`--engine ray` on a local Ray cluster: the same rows as the local engine, whatever happens."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from support.faulty_server import FaultyServer
from support.recipes import CHAT, Recipe, say
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.cli import distill


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


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
            done = recipe.run("--engine", name)
            assert done.exit_code == 0, done.output
            assert "60 of 60 completions" in done.output
        rows = recipe.rows()
        parts = {path.name for path in recipe.output.glob("part-*.jsonl")}
        local = Recipe(tmp_path / "local", server.url, 30, n=2).rows()
        assert sorted(map(key_of, rows)) == sorted(map(key_of, local))

        answered = len(server.answered)
        recipe.prompts(34)
        done = recipe.run("--engine", "ray")
        assert done.exit_code == 0 and "68 of 68 completions" in done.output
        assert len(server.answered) == answered + 8
        assert len(recipe.rows()) == len({row["id"] for row in recipe.rows()}) == 68
        assert {path.name for path in recipe.output.glob("part-*.jsonl")} > parts


def test_generate_holds_one_budget_for_all_workers(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 60, max_tokens=30, budget={"tokens": 2400})
        done = recipe.run("--engine", "ray")
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
        done = recipe.run("--engine", "ray")
        assert done.exit_code == 1 and "bad key" in done.output, done.output
        assert "Traceback" not in done.output and "The same command" in done.output
        assert len(recipe.rows()) == len(server.answered) < 399


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
            "teacher": {"name": "teacher"},
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
        done = CliRunner().invoke(distill, ["filter", str(path), "--engine", name])
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
