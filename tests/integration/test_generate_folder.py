"""A folder over several runs: prompts that change, rows that are damaged, a run that is stopped."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from support.axolotl_run import environment
from support.cli import distill_here
from support.faulty_server import FaultyServer
from support.recipes import CHAT, Recipe, say

from axolotl_distill.trajectories import read_trajectories


def lines(path, *rows):
    """`rows` as JSON lines; text is a line as it is."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(text + "\n" for text in texts))


def asking(tmp_path, server, *rows, **generate):
    recipe = Recipe(tmp_path, server.url, 1, **generate)
    lines(tmp_path / "prompts.jsonl", *rows)
    return recipe


def aside(recipe, name="prompts"):
    return list(read_trajectories(recipe.output / "aside" / f"{name}.jsonl"))


def test_half_an_emoji_in_a_prompt(tmp_path):
    """Sent with U+FFFD, wherever it stands; the others are answered."""
    tool = {"name": "look\ud83d", "parameters": {"\ud83d": 1}}
    with FaultyServer({CHAT: say}) as server:
        recipe = asking(
            tmp_path,
            server,
            {"prompt": "first"},
            {"prompt": "the reviewer wrote \ud83d"},
            {"prompt": "third", "system": "brief \udc00", "answer": ["\ud83d"], "tools": [tool]},
            {"prompt": "nul \0, huge", "number": 10**400, "nan": float("nan")},
        )
        done = recipe.run()
        assert done.exit_code == 0, done.output
        asked = {r.body["messages"][-1]["content"]: r.body for r in server.requests}
    assert asked.keys() == {"first", "the reviewer wrote \ufffd", "third", "nul \0, huge"}
    third = asked["third"]
    assert third["messages"][0] == {"role": "system", "content": "brief \ufffd"}
    assert third["tools"][0]["function"] == {"name": "look\ufffd", "parameters": {"\ufffd": 1}}
    assert "2 rows of the prompts: they hold half of a surrogate pair" in done.output
    metas = [row["meta"] for row in recipe.rows()]
    assert {"answer": ["\ufffd"]} in metas and {"number": 10**400, "nan": None} in metas
    recipe.values["generate"]["system"] = "half \ud83d"
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe.values))
    wrong = distill_here("generate", tmp_path / "recipe.yml", check=False)
    assert wrong.returncode == 1 and "half of a surrogate pair" in wrong.stderr


def test_rows_that_cannot_be_asked_are_put_aside(tmp_path):
    """Before anything is paid for; what a filter would refuse is among them."""
    image = {"type": "image_url", "image_url": {"url": "x"}}
    call = {"role": "assistant", "tool_calls": [{"id": 1}]}
    bad = [
        {"prompt": ""},
        '{"prompt": "torn',
        "7",
        {"messages": [{"role": "user", "content": [image]}]},
        {"messages": [{"role": "user", "content": {"text": "a"}}]},
        {"messages": [{"role": "system", "content": "only"}]},
        {"prompt": "a", "tools": "no JSON"},
        {"prompt": "a", "tools": ["hammer"]},
        {"prompt": "a", "system": {"text": "x"}},
        {"messages": [call, {"role": "user", "content": "a"}]},
        '{"prompt": "a", "n": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ]
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    with FaultyServer({CHAT: say}) as server:
        good = {"messages": [{"role": "user", "content": parts}]}
        recipe = asking(tmp_path, server, *bad, good)
        done = recipe.run()
        assert done.exit_code == 0, done.output
        (request,) = server.requests
        assert request.body["messages"] == [{"role": "user", "content": "two parts"}]
        found = aside(recipe)
        assert [row["row"] for row in found] == list(range(1, len(bad) + 1))
        assert found[0]["given"] == {"prompt": ""} and found[1]["given"].startswith('{"prompt": "t')
        assert f"{len(bad)} rows of the prompts cannot be asked" in done.output
        assert "row 1: `prompt` is empty" in done.output
        filtering = {**recipe.values, "filter": {"output": str(tmp_path / "dataset")}}
        (tmp_path / "recipe.yml").write_text(json.dumps(filtering))
        assert "1 of 1 rows" in distill_here("filter", tmp_path / "recipe.yml").stdout
        lines(tmp_path / "prompts.jsonl", *bad)
        wrong = recipe.run()
        assert wrong.exit_code == 1 and f"not one of {len(bad)} rows can be asked" in wrong.output


def test_arrow_adds_nothing(tmp_path):
    """Calls and tools out of typed columns have no keys of other rows."""
    calls = [
        {"function": {"name": "a", "arguments": {"to": "Ulm", "when": {"day": 1}}}},
        {"function": {"name": "b", "arguments": {"x": 1}}},
    ]
    tools = [
        {"function": {"name": "a", "parameters": {"properties": {"to": {"type": "string"}}}}},
        {"function": {"name": "b", "parameters": {"properties": {"x": {"type": "integer"}}}}},
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "done", "tool_call_id": "1"},
            ],
            "tools": [tool],
            "answer": None,
        }
        for call, tool in zip(calls, tools, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 1)
        recipe.values["generate"]["prompts"] = [{"path": str(tmp_path / "p.parquet")}]
        assert recipe.run().exit_code == 0
        bodies = [request.body for request in server.requests]
    for body in sorted(bodies, key=lambda body: body["tools"][0]["function"]["name"]):
        call, tool = calls.pop(0), tools.pop(0)
        (sent,) = body["messages"][1]["tool_calls"]
        assert json.loads(sent["function"]["arguments"]) == call["function"]["arguments"]
        assert body["tools"] == [tool]
    assert [row["meta"] for row in recipe.rows()] == [{"answer": None}] * 2


def test_a_damaged_line_is_named_and_asked_again(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 5)
        assert recipe.run().exit_code == 0
        part = recipe.output / "part-00000.jsonl"
        first, second, *others = part.read_text().splitlines()
        changed = first.replace("question", "quest1on")
        part.write_text("\n".join([changed, second[:30], *others]) + "\n")
        filtering = {**recipe.values, "filter": {"output": str(tmp_path / "dataset")}}
        (tmp_path / "filter.yml").write_text(json.dumps(filtering))
        done = distill_here("filter", tmp_path / "filter.yml")
        assert "2 of 5 rows are put aside" in done.stderr and "3 of 5 rows" in done.stdout
        again = recipe.run()
        assert again.exit_code == 0, again.output
        assert "2 lines are damaged" in again.output and "part-00000.jsonl, line 1" in again.output
        assert [row["text"].strip() for row in aside(recipe, "damaged")] == [changed, second[:30]]
        assert len(server.requests) == 7 and len({row["id"] for row in recipe.rows()}) == 5
        assert "lines are damaged" not in recipe.run().output


def test_a_corrected_answer_is_seen(tmp_path):
    with FaultyServer({CHAT: lambda body: say(body, content="It is 4.")}) as server:
        recipe = asking(tmp_path, server, {"prompt": "2 + 2?", "solution": "5"})
        assert recipe.run().exit_code == 0
        steps = [{"verify": {"method": "numeric", "answer": "solution"}}]
        recipe.values["filter"] = {"output": str(tmp_path / "dataset"), "steps": steps}
        (tmp_path / "filter.yml").write_text(json.dumps(recipe.values))
        wrong = distill_here("filter", tmp_path / "filter.yml", check=False)
        assert wrong.returncode == 1 and "No row is left" in wrong.stderr
        lines(tmp_path / "prompts.jsonl", {"prompt": "2 + 2?", "solution": "4"})
        assert "1 of 1 rows" in distill_here("filter", tmp_path / "filter.yml").stdout
        (tmp_path / "prompts.jsonl").unlink()
        gone = distill_here("filter", tmp_path / "filter.yml", check=False)
        assert "The prompts cannot be read again" in gone.stderr


def test_other_prompts_and_fewer_samples(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 4, n=2)
        assert recipe.run().exit_code == 0
        recipe.values["generate"]["n"] = 1
        done = recipe.run()
        assert done.exit_code == 0 and "4 completions" in done.output
        assert "are beyond `n: 1`" in done.output and len(server.requests) == 8
        recipe.values["filter"] = {"output": str(tmp_path / "dataset")}
        (tmp_path / "filter.yml").write_text(json.dumps(recipe.values))
        done = distill_here("filter", tmp_path / "filter.yml")
        assert "4 of 8 rows" in done.stdout and "4 beyond n = 1" in done.stderr
        recipe.prompts(2)
        some = recipe.run()
        assert some.exit_code == 0 and "of prompts that are not asked now" in some.output
        assert (
            "2 of 4 prompts are not among" in distill_here("filter", tmp_path / "filter.yml").stderr
        )
        before = {file: file.read_bytes() for file in recipe.output.rglob("*.json*")}
        lines(tmp_path / "prompts.jsonl", {"prompt": "something else"})
        other = recipe.run()
        assert other.exit_code == 1 and "none of them is to one of the 1 prompts" in other.output
        assert before == {file: file.read_bytes() for file in recipe.output.rglob("*.json*")}
        assert len(server.requests) == 8


def test_terminated(tmp_path):
    """SIGTERM, as schedulers send it: what came is kept and said, and the command goes on."""
    release = threading.Event()

    def chat(body):
        if len(server.answered) >= 12:
            release.wait(20.0)
        return say(body)

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(tmp_path, server.url, 40)
        (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe.values))
        command = "from axolotl_distill.cli import distill; distill()"
        child = subprocess.Popen(
            [sys.executable, "-c", command, "generate", str(tmp_path / "recipe.yml")],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        while child.poll() is None and len(server.answered) < 12:
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGTERM)
        said = child.communicate(timeout=60)[1]
        release.set()
        kept = len(recipe.rows())
        assert child.returncode == 128 + signal.SIGTERM and "Traceback" not in said
        assert kept >= 12 and f"{kept} of 40 completions are there" in said
        assert recipe.run().exit_code == 0
    assert len({row["id"] for row in recipe.rows()}) == 40
