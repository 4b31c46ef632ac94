"""Hundreds of kills of the real commands, at random moments and at the calls where files change.

    CRASH_KILLS=200 CRASH_SEED=0 pytest -m slow -s tests/crash/test_kills.py

docs/reliability.md says what came of it.
"""

import json
import os
import random
import shutil
import time
from contextlib import suppress

import pytest
import yaml
from support.captures import Captures, small_model, small_rows
from support.crash import kill_again_and_again, served
from support.recipes import CHAT, say
from support.synthetic import write_store
from support.trajectories import trajectory, write_trajectories

from axolotl_distill.cli import distill
from axolotl_distill.filter.answers import FILE as ANSWERS
from axolotl_distill.filter.answers import Answers
from axolotl_distill.trajectories import read_trajectories

KILLS = int(os.environ.get("CRASH_KILLS", "200"))
SEED = int(os.environ.get("CRASH_SEED", "0"))
FEW = 4
few_and_many = pytest.mark.parametrize(
    "kills", [FEW, pytest.param(KILLS, marks=pytest.mark.slow)], ids=["few", "many"]
)


def command(*args):
    distill.main([str(arg) for arg in args], prog_name="axolotl-distill")


def report(job, tally):
    print(f"\n{job.name}, seed {SEED}: {json.dumps(vars(tally))}")
    assert not tally.orphans


@few_and_many
@pytest.mark.parametrize("records", [{"draws": 8}, {"k": 8}], ids=["draws", "topk"])
def test_capture(tmp_path, records, kills):
    """No row that was captured is lost or changes; the store is that of an undisturbed run."""
    job = Captures(small_model(tmp_path / "model"), small_rows(), **records)
    report(job, kill_again_and_again(job, tmp_path / "kills", -(-kills // 2), SEED))


class Reshards(Captures):
    """A finished store into smaller shards."""

    name = "store reshard"

    def __init__(self, source):
        self.source = source

    def run(self, folder):
        command(
            "store", "reshard", self.source, "--shard-records", 300, "--output", folder / "store"
        )


@few_and_many
def test_reshard(tmp_path, kills):
    """No row that was committed is lost or changes."""
    source = write_store(tmp_path / "source", "topk", rows=300, every=2000)
    report(Reshards(source), kill_again_and_again(Reshards(source), tmp_path / "k", kills, SEED))


class Generates:
    """Two answers to every prompt from a server; `log` is what it answered."""

    name = "generate"
    prompts, samples, concurrency = 60, 2, 4

    def __init__(self, root, log):
        self.root, self.log, self.known = root, log, {}

    def begin(self, folder):
        folder.mkdir()
        rows = ({"prompt": f"{folder.name} q{n}"} for n in range(self.prompts))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "prompts.jsonl").write_text(lines)
        server = {"base_url": f"{self.root}/v1", "concurrency": self.concurrency}
        values = {
            "teacher": {"model": "Qwen/Qwen3-8B", "server": server},
            "generate": {
                "prompts": str(folder / "prompts.jsonl"),
                "output": str(folder / "out"),
                "n": self.samples,
            },
        }
        (folder / "recipe.yml").write_text(yaml.safe_dump(values))

    def run(self, folder):
        command("generate", folder / "recipe.yml")

    def asked(self, folder):
        """How often which prompt was answered with which seed."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        bodies = (json.loads(line)[1] for line in lines)
        said = (say(body)["choices"][0]["message"]["content"] for body in bodies)
        return [text for text in said if text.startswith(f"{folder.name} ")]

    def kept(self, folder):
        """Answers; of each that is there it is kept too how often it was asked for."""
        if not list((folder / "out").glob("part-*.jsonl")):
            return {}
        asked = self.asked(folder)
        rows = {row["id"]: row for row in read_trajectories(folder / "out")}
        return {name: (row["content"], asked.count(row["content"])) for name, row in rows.items()}

    def result(self, folder):
        rows = list(read_trajectories(folder / "out"))
        assert len(rows) == len({row["id"] for row in rows}) == self.prompts * self.samples
        left = {entry.name for entry in (folder / "out").iterdir()} - {".lock"}
        assert left == {"generation.json", "part-00000.jsonl"}
        # The seed of a request is its generation's own.
        return sorted(
            (row["messages"][-1]["content"].split()[-1], row["sample"], row["finish_reason"])
            for row in rows
        )


@few_and_many
def test_generate(tmp_path, kills):
    """No answer that arrived is lost or asked for again."""

    def chat(body):
        time.sleep(0.004 + random.random() * 0.02)
        return say(body)

    log = tmp_path / "answered.jsonl"
    with served({CHAT: chat}, log) as root:
        job = Generates(root, log)
        report(job, kill_again_and_again(job, tmp_path / "kills", kills, SEED))


class Filters:
    """Verifies, asks a judge, deduplicates, and replaces a dataset that is there."""

    name = "filter"
    prompts, samples = 20, 3

    def __init__(self, root, before):
        self.root, self.before = root, before

    def begin(self, folder):
        folder.mkdir()
        if self.before.exists():
            shutil.copytree(self.before, folder / "dataset")
        rows = [
            trajectory(
                prompt,
                sample,
                content=f"<think>\nhm\n</think>\n\n{prompt + sample % 2}",
                meta={"answer": str(prompt)},
            )
            for prompt in range(self.prompts)
            for sample in range(self.samples)
        ]
        write_trajectories(folder / "trajectories", rows, parts=2)
        judge = {"model": "judge", "server": {"base_url": f"{self.root}/v1", "concurrency": 4}}
        values = {
            "teacher": {"model": "teacher"},
            "filter": {
                "input": str(folder / "trajectories"),
                "output": str(folder / "dataset"),
                "split": {"eval": 0.2},
                "steps": [
                    {"verify": {"method": "exact"}},
                    {"judge": judge},
                    {"deduplicate": {"within": "prompt"}},
                ],
            },
        }
        (folder / "recipe.yml").write_text(yaml.safe_dump(values))

    def run(self, folder):
        command("filter", folder / "recipe.yml")

    def kept(self, folder):
        """Every answer of the judge, and a dataset that is whole: the old one or the new one."""
        files = self.files(folder)
        if files is not None:
            assert files in (self.files(self.before.parent), getattr(self, "new", files))
        path = folder / "dataset.answers"
        if not (path / ANSWERS).exists():
            return {}
        with Answers(path) as answers:
            found = {key: value for key, value in answers._do("SELECT key, value FROM answers")}
            assert all(answers.get(key) is not None for key in found)
        return found

    @staticmethod
    def files(folder):
        """Of a dataset, by name; the report says where its rows are. None where there is none."""
        path = folder / "dataset"
        if not path.exists():
            path = folder / ".dataset.old"
        if not path.exists():
            return None
        return {
            str(file.relative_to(path)): file.read_bytes().replace(f"{folder}/".encode(), b"")
            for file in path.rglob("*")
            if file.is_file()
        }

    def result(self, folder):
        assert (folder / "dataset").exists()
        names = {entry.name for entry in folder.iterdir()}
        assert names == {"dataset", "dataset.answers", "recipe.yml", "trajectories"}
        return self.files(folder)


@few_and_many
def test_filter(tmp_path, kills):
    """The dataset is the old one or the new one, and no answer that arrived is lost."""

    def grade(body):
        time.sleep(0.002 + random.random() * 0.01)
        return {"choices": [{"message": {"role": "assistant", "content": "Score: 7"}}]}

    with served({CHAT: grade}, tmp_path / "answered.jsonl") as root:
        job = Filters(root, tmp_path / "before" / "dataset")
        job.begin(tmp_path / "before")
        with suppress(SystemExit):
            job.run(tmp_path / "before")
        assert job.before.exists()
        report(job, kill_again_and_again(job, tmp_path / "kills", kills, SEED))
