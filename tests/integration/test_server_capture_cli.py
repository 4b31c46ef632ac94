"""`axolotl distill capture` from a server and `axolotl distill import`, as commands."""

import json
import signal
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from support.axolotl_run import environment
from support.cli import CHATS, COMMAND, capture_config, distill, distill_here
from support.faulty_server import FaultyServer
from support.model_server import ModelServer

from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.cli import distill as commands
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.store import verify_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

pytestmark = pytest.mark.axolotl

ROWS = 16
SERVER = {"base_url": "http://127.0.0.1:1/v1", "engine": "vllm"}


def test_killed_and_run_again(tmp_path, tiny_model, tiny_llama_dir):
    """kill -9 after some shards, the same command again: the store of the local teacher; what
    was committed is not asked for again, and the manifest says what is estimated."""
    model = tiny_model()
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.mkdir(), remote.mkdir()
    distill_here(
        "capture", capture_config(local, tiny_llama_dir, str(tiny_llama_dir), k=8), "--limit", ROWS
    )
    serving = ModelServer(model, model.tokenizer)

    def slowly(body):
        time.sleep(0.1)
        return serving.vllm(body)

    with FaultyServer({**serving.handlers, "/v1/completions": slowly}) as server:
        teacher = {
            "model": "teacher",
            "server": {"base_url": server.url, "engine": "vllm", "concurrency": 2},
        }
        config = capture_config(remote, tiny_llama_dir, teacher, k=8, shard_records=40)
        command = [*COMMAND, "capture", str(config), "--limit", str(ROWS)]
        child = subprocess.Popen(
            command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        shards = remote / "store" / "teacher"
        while child.poll() is None and len(list(shards.glob("*.safetensors"))) < 2:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        stored = stored_rows(remote / "store")
        assert 0 < stored < ROWS
        before = len(server.requests)
        done = distill("capture", config, "--limit", ROWS)
        again = [r for r in server.requests[before:] if r.path == "/v1/completions"]
        # Two are plain prose, by which it finds out the server's temperature.
        assert len(again) == ROWS - stored + 2
    assert "Teacher terms" in done.stdout

    seen, expected = verify_store(remote / "store"), verify_store(local / "store")
    rows, true_rows = (
        pq.read_table(store.path / "data").drop(["teacher_start"]).to_pylist()
        for store in (seen, expected)
    )
    assert rows == true_rows and len(rows) == ROWS
    index = np.arange(expected.num_records)
    found, truth = seen.read(index), expected.read(index)
    vocab_size = expected.manifest.vocab_size
    (ids, logprobs), (true_ids, true_logprobs) = (
        decode_logprobs(records.entries, vocab_size) for records in (found, truth)
    )
    assert (np.sort(ids) == np.sort(true_ids)).mean() > 0.999
    assert np.abs(logprobs - true_logprobs).max() < 2e-3
    tail, true_tail = (np.exp(decode_tail(records.tail[:, 0])) for records in (found, truth))
    assert tail == pytest.approx(true_tail, rel=2e-3, abs=2e-5)
    assert seen.manifest.tail_estimated == [2.0, 4.0] and expected.manifest.tail_estimated == []
    card = (remote / "store" / "README.md").read_text()
    assert "2 (tail estimated)" in card and "family" in card


def test_import_command(tmp_path, tiny_model, tiny_llama_dir):
    """Trajectories with log-probabilities to a store, and what `inspect` says of it."""
    model = tiny_model()
    tokenizer, serving = model.tokenizer, ModelServer(model, model.tokenizer)
    folder = tmp_path / "trajectories"
    folder.mkdir()
    written = 0
    with (folder / "part-0.jsonl").open("w") as file:
        for number, line in enumerate(CHATS.read_text().splitlines()[:5]):
            question, answer = json.loads(line)["messages"][-2:]
            prompt = tokenizer.apply_chat_template(
                [question], add_generation_prompt=True, return_dict=False
            )
            ids = tokenizer(f"{answer['content'][:80]}<|im_end|>")["input_ids"]
            written += len(ids)
            top = serving.logprobs([*prompt, *ids])[len(prompt) - 1 :].topk(5)
            content = [
                {
                    "token": f"token_id:{own}",
                    "logprob": -0.3,
                    # Four others share what a teacher that wrote this leaves.
                    "top_logprobs": [
                        {"token": f"token_id:{own}", "logprob": -0.3},
                        *(
                            {"token": f"token_id:{token}", "logprob": value - 2.0}
                            for value, token in zip(values, tokens, strict=True)
                            if token != own
                        ),
                    ],
                }
                for own, values, tokens in zip(ids, top[0].tolist(), top[1].tolist(), strict=True)
            ]
            row = {
                "id": f"{number}-0",
                "prompt_id": str(number),
                "sample": 0,
                "messages": [question],
                "content": answer["content"][:80],
                "logprobs": content,
                "teacher": "a-tiny-teacher",
            }
            file.write(json.dumps(row) + "\n")
    config = capture_config(tmp_path, tiny_llama_dir, {"model": "x", "server": SERVER})
    done = distill_here("import", config, folder, "--output", tmp_path / "imported")
    assert "trajectories" in done.stdout and f"{written} tokens" in done.stdout
    store = verify_store(tmp_path / "imported")
    assert store.num_records == written
    assert store.manifest.teacher == {
        "name": "a-tiny-teacher",
        "imported": "trajectories",
        "weights": "not known",
    }
    shown = CliRunner().invoke(commands, ["inspect", str(store.path)]).output
    assert "tail estimated at T" in shown and "a-tiny-teacher" in shown


@pytest.mark.parametrize("command", ["capture", "generate"])
@pytest.mark.parametrize("limit", ["0", "-1"])
def test_a_limit_of_nothing(command, limit):
    done = CliRunner().invoke(commands, [command, "nowhere.yml", "--limit", limit])
    assert done.exit_code == 2 and f"{limit} is not in the range x>=1" in done.output


@pytest.mark.parametrize(
    ("teacher", "changes", "about"),
    [
        ({"type": "server", "model": "x", "server": SERVER}, {}, "`type` is no key of a teacher"),
        ({"name": "x", "server": SERVER}, {}, "unknown key `name`; did you mean `model`?"),
        ({"path": "y"}, {}, "unknown key `path`; did you mean `model`?"),
        ({"server": SERVER}, {}, "no `model`"),
        ({}, {}, "no `model`"),
        ({"model": "x", "server": {**SERVER, "engine": "openai"}}, {}, "must be vllm or sglang"),
        ({"model": "x", "server": SERVER}, {"batch_tokens": 8192}, "without `teacher.server` only"),
        ({"model": "x", "server": SERVER}, {"method": "sampled"}, "likeliest tokens only"),
        ({"model": "x", "server": {**SERVER, "bas_url": "?"}}, {}, "did you mean `base_url`"),
    ],
)
def test_refused_before_anything_is_loaded(teacher, changes, about):
    with pytest.raises(ConfigError) as refused:
        parse_distill({"capture": {"teacher": teacher, "output": "o", **changes}})
    assert about in str(refused.value) and "distill.capture" in str(refused.value)
