"""Hundreds of kills of the real commands, at random moments and at the calls where files change.

    CRASH_KILLS=200 CRASH_SEED=0 pytest -m slow -s tests/crash/test_kills.py

docs/reliability.md says what came of it.
"""

import hashlib
import json
import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.crash import kill_again_and_again, served
from support.recipes import CHAT, say
from support.synthetic import about_rows
from support.trajectories import trajectory, write_trajectories
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_distill.capture import Capture
from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.capture.teacher import opened
from axolotl_distill.cli import distill
from axolotl_distill.cli.frame import ends_well
from axolotl_distill.commands.kept import keeps_what_is_written
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.filter.answers import FILE as ANSWERS
from axolotl_distill.filter.answers import Answers
from axolotl_distill.store import new_manifest, open_store, pointer_record, verify_store
from axolotl_distill.store.folder import JOURNAL
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.trajectories import read_trajectories

KILLS = int(os.environ.get("CRASH_KILLS", "200"))
SEED = int(os.environ.get("CRASH_SEED", "0"))
FEW = 4
VOCAB = 1000
few_and_many = pytest.mark.parametrize(
    "kills", [FEW, pytest.param(KILLS, marks=pytest.mark.slow)], ids=["few", "many"]
)


def command(*args):
    distill.main([str(arg) for arg in args], prog_name="axolotl-distill")


def report(job, tally):
    print(f"\n{job.name}, seed {SEED}: {json.dumps(vars(tally))}")
    assert not tally.orphans


class Captures:
    """Of random text, by a real model loaded anew, to several shards: what the command does once
    Axolotl has read the text, which takes longer than everything here."""

    name = "capture"

    def __init__(self, model: Path, rows, **capture):
        self.rows = rows
        teacher = {"model": str(model), "device": "cpu", "dtype": "float32"}
        self.args = CaptureArgs(teacher=teacher, output="-", batch_tokens=400, **capture)

    def begin(self, folder):
        folder.mkdir()

    def run(self, folder):
        payload = distribution_of(self.args)
        manifest = new_manifest(
            vocab_size=VOCAB,
            payloads=[payload],
            temperatures=self.args.temperatures if "tail" in payload.columns else [],
            sequence_len=200,
            tokenizer={"fingerprint": "f" * 64, "name": "smollm2"},
            teacher={"name": "tiny"},
            source=about_rows(self.rows),
        )
        path = folder / "store"
        with (
            ends_well("kept"),
            keeps_what_is_written(str(path)),
            Capture(path, manifest, self.rows, str, shard_records=900) as capture,
            opened(self.args, VOCAB) as source,
        ):
            if not capture.was_complete:
                capture(source)

    def kept(self, folder):
        """Every row with its records, out of the shards that are there; and of those that are in no
        shard yet how many there are."""
        path = folder / "store"
        count = {("row", number): True for number in range(stored_rows(path))}
        if not (path / "manifest.json").exists():
            return count
        return {**count, **rows_of(open_store(path, allow_incomplete=True, check_again=True))}

    def result(self, folder):
        path = folder / "store"
        assert not (path / JOURNAL).exists()
        store = verify_store(path)
        assert store.manifest.complete
        records = [digest(path / shard.records_file) for shard in store.manifest.shards]
        return rows_of(store), records


def rows_of(store):
    """By its number in the source: tokens, labels, text, where its records are, and a hash of
    them."""
    found = {}
    for file in store.parquet_files:
        for row in pq.read_table(file).to_pylist():
            start = int(pointer_record(np.int64(row.pop("teacher_start"))))
            records = store.read(np.arange(start, start + row["num_records"]))
            columns = {
                name: array.tolist()
                for name, array in vars(records).items()
                if isinstance(array, np.ndarray)
            }
            text = json.dumps([row, start, columns], sort_keys=True)
            found[row["id"]] = hashlib.sha256(text.encode()).hexdigest()
    return found


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@few_and_many
@pytest.mark.parametrize("records", [{"draws": 8}, {"k": 8}], ids=["draws", "topk"])
def test_capture(tmp_path, records, kills):
    """No row that was captured is lost or changes; the store is that of an undisturbed run."""
    torch.manual_seed(0)
    config = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**config, **heads))
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0)
    model.save_pretrained(tmp_path / "model")
    rows = []
    for number in range(300):
        ids = np.random.default_rng(number).integers(0, VOCAB, 6 + (37 * number) % 41).tolist()
        labels = [-100] * len(ids) if number % 13 == 3 else [-100, -100, *ids[2:]]
        rows.append({"input_ids": ids, "labels": labels})
    job = Captures(tmp_path / "model", rows, **records)
    report(job, kill_again_and_again(job, tmp_path / "kills", -(-kills // 2), SEED))


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
