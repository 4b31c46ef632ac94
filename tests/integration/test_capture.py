"""The capture command on a real teacher and real chats."""

import json
import random
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.axolotl_run import BASE, environment, run_axolotl
from support.cli import CHATS, COMMAND, distill, distill_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.store import open_store, verify_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

pytestmark = pytest.mark.axolotl


@pytest.fixture
def config(tmp_path, tiny_llama_dir):
    """Writes a YAML whose teacher is the tiny model; `change` edits it before it is written."""

    def write(change=lambda values: None):
        values = {
            **BASE,
            "base_model": str(tiny_llama_dir),
            "output_dir": str(tmp_path / "out"),
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "sequence_len": 200,
            "distill": {
                "temperature": 2.0,
                "capture": {
                    "teacher": str(tiny_llama_dir),
                    "output": str(tmp_path / "store"),
                    "datasets": [{"path": str(CHATS), "type": "chat_template"}],
                    "k": 8,
                    "batch_tokens": 1024,
                    "shard_records": 500,
                },
            },
            "datasets": [{"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}],
        }
        change(values)
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_records_are_the_teachers(tmp_path, config, tiny_llama_dir):
    """Every record is the distribution of the next token, and of no other."""
    distill("capture", config())
    store = verify_store(tmp_path / "store")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    rows = pq.read_table(store.path / "data").to_pylist()
    assert len(rows) > 40
    found = store.read(np.arange(store.num_records))
    ids, logprobs = decode_logprobs(found.entries, store.manifest.vocab_size)
    start = 0
    shifted_agree = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        supervised = np.flatnonzero(np.asarray(row["labels"][1:]) != -100)
        assert row["num_records"] == supervised.size > 0
        here = slice(start, start + supervised.size)
        start += supervised.size
        exact = logits.log_softmax(-1)
        for place, entry_ids, entry, tail in zip(
            supervised, ids[here], logprobs[here], found.tail[here], strict=True
        ):
            top = exact[place].topk(8)
            assert set(entry_ids) == set(top.indices.tolist())
            assert entry == pytest.approx(top.values.numpy(), abs=1e-3)
            tempered = (logits[place] / 2.0).softmax(-1)
            outside = 1 - tempered[entry_ids].sum().item()
            assert np.exp(decode_tail(tail[1])) == pytest.approx(outside, rel=2e-3)
            shifted_agree.append(set(entry_ids) == set(exact[place + 1].topk(8).indices.tolist()))
        # Only what the assistant said is supervised.
        prompt = tokenizer.decode(row["input_ids"][: supervised[0] + 1])
        assert prompt.endswith("<|im_start|>assistant\n")
    assert start == store.num_records
    assert np.mean(shifted_agree) < 0.1


@pytest.mark.slow  # tests/crash has quicker kills
def test_killed_and_run_again(tmp_path, config):
    """kill -9 at random moments: the store ends as that of one uninterrupted run."""
    path = config(lambda values: values["distill"]["capture"].update(shard_records=60))
    command = [*COMMAND, "capture", str(path)]
    journal = tmp_path / "store" / "shards.jsonl"
    kills = 0
    for _ in range(12):
        child = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if kills < 2:
            seen = journal.read_text() if journal.exists() else ""
            while child.poll() is None and (not journal.exists() or journal.read_text() == seen):
                time.sleep(0.005)
            time.sleep(random.uniform(0.0, 0.05))
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                kills += 1
        if child.wait() == 0:
            break
    assert kills == 2
    distill_here("capture", path, "--output", tmp_path / "whole")
    killed, whole = verify_store(tmp_path / "store"), verify_store(tmp_path / "whole")
    index = np.arange(whole.num_records)
    assert killed.num_records == whole.num_records
    # Rows share a batch with others after a restart, which moves a logit by its rounding.
    seen, expected = killed.read(index), whole.read(index)
    vocab_size = whole.manifest.vocab_size
    (ids, logprobs), (true_ids, true_logprobs) = (
        decode_logprobs(np.sort(found.entries), vocab_size) for found in (seen, expected)
    )
    assert (ids == true_ids).all()
    assert np.abs(logprobs - true_logprobs).max() < 2e-3
    assert np.abs(seen.tail.astype(int) - expected.tail).max() <= 2
    again = distill_here("capture", path)
    assert "complete" in again.stdout


def test_draws_are_the_default_and_nucleus(tmp_path, config):
    def unsaid(values):
        del values["distill"]["capture"]["k"]

    distill_here("capture", config(unsaid), "--limit", 10)
    store = verify_store(tmp_path / "store")
    assert store.num_rows == 10
    assert store.manifest.payloads.distribution.model_dump() == {
        "kind": "sampled",
        "draws": 16,
        "temperature": 2.0,
        "seed": 0,
    }
    assert store.manifest.temperatures == [] and store.manifest.bytes_a_record < 3 * 16 + 4

    # The teacher is the student as it starts. Draws say so on average: 0.6 nats is the standard
    # deviation of one token here, and another token's record is several nats away.
    run = run_axolotl(tmp_path, {**yaml.safe_load(config(unsaid).read_text()), "max_steps": 1})
    assert abs(run.steps[0]["distill/kl"]) < 0.5
    assert run.steps[0]["distill/teacher_mass"] == pytest.approx(1)

    def nucleus(values):
        del values["distill"]["capture"]["k"]
        values["distill"]["capture"].update(method="nucleus", p=0.5, max_k=30)

    done = distill_here("capture", config(nucleus), "--output", tmp_path / "nucleus", "--limit", 10)
    assert "With `method: sampled`, the default" in done.stdout
    entries = verify_store(tmp_path / "nucleus").read(np.arange(50)).entries
    assert entries.shape[1] <= 30


def test_another_source_is_not_resumed(tmp_path, config):
    distill_here("capture", config(), "--limit", 5)
    done = distill_here("capture", config(), "--limit", 6, check=False)
    assert done.returncode == 1
    assert "another `source`" in done.stderr and "Traceback" not in done.stderr


def test_inspect_and_verify(tmp_path, config, tiny_llama_dir):
    path = config()
    distill_here("capture", path, "--limit", 6)
    numbers = json.loads(
        "{" + distill_here("inspect", tmp_path / "store", "--json").stdout.split("{", 1)[1]
    )
    store = open_store(tmp_path / "store")
    assert numbers["records"] == store.num_records and numbers["rows"] == 6
    assert set(numbers["mass held at T"]) == {"1", "2", "4"}
    shown = distill_here("inspect", tmp_path / "store").stdout
    assert "assistant" in shown and "->" in shown
    good = distill_here("verify", tmp_path / "store", "--config", path)
    assert "fit the store" in good.stdout

    file = next((tmp_path / "store" / "teacher").iterdir())
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    bad = distill_here("verify", tmp_path / "store", check=False)
    assert bad.returncode == 1 and file.name in bad.stderr and "sha256" in bad.stderr


def test_nothing_supervised(tmp_path, config):
    chats = tmp_path / "questions.jsonl"
    chats.write_text(json.dumps({"messages": [{"role": "user", "content": "Well?"}]}) + "\n")

    def change(values):
        values["distill"]["capture"]["datasets"][0]["path"] = str(chats)

    done = distill_here("capture", config(change), check=False)
    assert done.returncode == 1
    assert "questions.jsonl" in done.stderr and "supervised" in done.stderr


def test_unknown_key_names_the_right_one(config):
    def change(values):
        values["distill"]["temprature"] = values["distill"].pop("temperature")

    done = distill_here("capture", config(change), check=False)
    assert done.returncode == 1
    assert "did you mean `temperature`?" in done.stderr


def test_tokens_that_only_the_student_has(tmp_path, config):
    """`special_tokens` and `tokens` add ids that the teacher lacks: they get no mass, and a row
    that holds one is refused before a store is begun."""
    extra = {"special_tokens": {"pad_token": "<|my_padding|>"}, "tokens": ["<|my_tool|>"]}
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "A <|my_tool|>"}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")

    def holds_one(values):
        values.update(extra)
        values["distill"]["capture"]["datasets"][0]["path"] = str(chats)

    refused = distill_here("capture", config(holds_one), check=False)
    assert refused.returncode == 1
    assert "Row 1 " in refused.stderr and "'<|my_tool|>' (id 49153)" in refused.stderr
    assert not (tmp_path / "store").exists()

    path = config(lambda values: values.update(extra))
    distill_here("capture", path, "--limit", 3)
    manifest = verify_store(tmp_path / "store").manifest
    assert manifest.vocab_size == 49_152
    assert "<|im_end|>" in manifest.tokenizer["text"]
    # A student with them and one without can both be trained on it.
    distill_here("verify", tmp_path / "store", "--config", path)
    distill_here("verify", tmp_path / "store", "--config", config())


def test_a_teacher_that_is_not_there_leaves_no_store(tmp_path, config):
    def gone(values):
        values["distill"]["capture"]["teacher"] = str(tmp_path / "nothing")

    assert distill_here("capture", config(gone), check=False).returncode == 1
    assert not (tmp_path / "store" / "manifest.json").exists()
    distill_here("capture", config(), "--limit", 3)
