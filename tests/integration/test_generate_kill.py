"""kill -9 of the real command, again and again: nothing is lost, and nothing is asked for twice."""

import json
import random
import subprocess
import sys
import time

import yaml
from support.axolotl_run import environment
from support.faulty_server import FaultyServer

from axolotl_distill.trajectories import read_trajectories

CHAT = "/v1/chat/completions"
# The command without Axolotl's own start-up, which takes longer than everything here.
DISTILL = [sys.executable, "-c", "from axolotl_distill.cli import distill; distill()", "generate"]
PROMPTS, SAMPLES, CONCURRENCY, KILLS = 100, 3, 8, 4


def test_killed_at_random_moments(tmp_path):
    rng = random.Random(11)

    def chat(body):
        time.sleep(0.01 + rng.random() * 0.06)
        told = f"{body['messages'][-1]['content']} / {body['seed']}"
        message = {"role": "assistant", "content": told}
        return {
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        }

    def faults(number, path, body):
        return rng.choice(["429", "500", "cut_json"]) if rng.random() < 0.05 else None

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(PROMPTS)))
    output = tmp_path / "out"
    part = output / "part-00000.jsonl"
    recipe = tmp_path / "recipe.yml"

    def asked_since(start):
        return {request.headers["idempotency-key"] for request in server.requests[start:]}

    with FaultyServer({CHAT: chat}, faults) as server:
        values = {
            "teacher": {
                "model": "Qwen/Qwen3-8B",
                "server": {"base_url": server.url, "concurrency": CONCURRENCY},
            },
            "generate": {"prompts": str(prompts), "output": str(output), "n": SAMPLES},
        }
        recipe.write_text(yaml.safe_dump(values))
        kills, keys = 0, []
        while True:
            start = len(server.requests)
            kept = set()
            if part.exists():
                if kills % 2:
                    # What a power cut may leave of a line; kill -9 rarely does.
                    with part.open("ab") as file:
                        file.write(b'{"id":"torn')
                kept = {row["id"] for row in read_trajectories(output)}
            child = subprocess.Popen(
                [*DISTILL, str(recipe)],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            # A random moment of its work, the first requests and the start-up among them.
            wanted = start + (0 if kills == 2 else rng.randint(1, 70))
            while child.poll() is None and len(server.requests) < wanted and kills < KILLS:
                time.sleep(0.002)
            if child.poll() is None and kills < KILLS:
                time.sleep(rng.random() * 0.05)
                child.kill()
                child.wait()
                kills += 1
            finished = child.wait() == 0
            assert finished or child.returncode == -9, child.stderr.read()[-2000:]
            again = {key.split("-", 1)[1] for key in asked_since(start)}
            assert not again & kept, "a completion that was kept is asked for again"
            keys += asked_since(start)
            if finished:
                break

    assert kills >= 3
    rows = list(read_trajectories(output))
    assert len(rows) == len({row["id"] for row in rows}) == PROMPTS * SAMPLES
    asked = {request.headers["idempotency-key"]: request.body for request in server.requests}
    # One key an id over all runs, so that a server which knows them bills what was in flight once.
    assert {key.split("-", 1)[1] for key in asked} == {row["id"] for row in rows}
    assert len(asked) == len(rows)
    for row in rows:
        body = next(body for key, body in asked.items() if key.endswith("-" + row["id"]))
        assert row["content"] == f"{row['messages'][-1]['content']} / {body['seed']}"
    assert len(rows) <= len(server.answered) <= len(rows) + kills * CONCURRENCY
