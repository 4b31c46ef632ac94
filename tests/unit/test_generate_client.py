"""The parts below the command: the client's tries, the journal's writes, the meter, the draws."""

import asyncio
import json
import resource
import time
from typing import ClassVar

import pytest
import torch
from support.faulty_server import FaultyServer

from axolotl_distill.commands.recipe import load_recipe
from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.errors import ConfigError, GenerateError, ServerError, TrajectoryError
from axolotl_distill.generate.meter import Meter
from axolotl_distill.generate.prompts import Prompt
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.sampling import Draws
from axolotl_distill.generate.tally import Tally
from axolotl_distill.generate.writer import GroupWriter
from axolotl_distill.teachers.client import ServerClient
from axolotl_distill.trajectories import Journal, read_trajectories, sealed
from axolotl_distill.trajectories.plain import is_damaged

PATH = "/v1/completions"


def post(server, check=lambda answer: None, **keys):
    async def ask():
        client = ServerClient(ServerArgs(base_url=server.url, **keys))
        try:
            return await client.post("/completions", {"q": 1}, check=check)
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (["garbage", "500", "429"], "answered 429"),
        (["429", "garbage", "empty"], "cannot be used"),
        (["cut_json", "500", "cut"], "does not answer"),
    ],
)
def test_tries_of_every_kind_count_together(faults, says):
    """The openai client's own retries and those for unusable answers do not multiply."""

    def usable(answer):
        if "ok" not in answer:
            raise ValueError("there is no `ok`")

    def fault(number, path, body):
        return faults[number] if number < len(faults) else None

    with FaultyServer({PATH: lambda body: {"ok": True}}, fault) as server:
        with pytest.raises(ServerError, match=says):
            post(server, usable, retries=2)
        assert len(server.requests) == 3
    with FaultyServer({PATH: lambda body: {"ok": True}}, fault) as server:
        assert post(server, usable, retries=3) == {"ok": True}
        assert len(server.requests) == 4


def test_a_hanging_server_times_out():
    with FaultyServer({PATH: lambda body: {}}, lambda *_: "hang") as server:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"takes longer than `timeout: 0\.2`"):
            post(server, retries=1, timeout=0.2)
        assert 0.4 <= time.monotonic() - start < 3.0
        assert len(server.requests) == 2


def test_no_server_at_all():
    with FaultyServer({}) as server:
        pass
    with pytest.raises(ServerError, match="Is the server up"):
        post(server, retries=0)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A write that fits only in part is taken back, and the journal goes on when there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path / "part-00000.jsonl") as journal:
        writer = GroupWriter(journal)
        asyncio.run(writer.append([{"id": "a"}]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
        try:
            with pytest.raises(GenerateError, match=r"part-00000\.jsonl cannot be written"):
                asyncio.run(writer.append([{"id": "b", "content": "x" * 100}]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        asyncio.run(writer.append([{"id": "c"}]))
        writer.close()
    assert (tmp_path / "part-00000.jsonl").read_text() == '{"id":"a"}\n{"id":"c"}\n'


class SlowDisk(Journal):
    """Takes 20 ms a write."""

    writes: ClassVar[list[int]] = []

    def append(self, rows):
        self.writes.append(len(rows))
        time.sleep(0.02)
        super().append(rows)


@pytest.mark.parametrize("cancelled", [False, True])
def test_rows_of_many_tasks_share_a_write(tmp_path, cancelled):
    """And a task cancelled while its row waits for the disk loses none."""
    SlowDisk.writes.clear()

    async def all_at_once():
        tasks = [asyncio.create_task(writer.append([{"id": str(i)}])) for i in range(50)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(writer.append([{"id": str(i)}])) for i in range(50, 60)]
        await asyncio.sleep(0.005)
        if cancelled:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        else:
            await asyncio.gather(*tasks)
            assert len(list(read_trajectories(tmp_path))) == 60

    with SlowDisk(tmp_path / "part-00000.jsonl") as journal:
        writer = GroupWriter(journal)
        asyncio.run(all_at_once())
        writer.close()
    assert {row["id"] for row in read_trajectories(tmp_path)} == {str(i) for i in range(60)}
    assert sum(SlowDisk.writes) == 60 and len(SlowDisk.writes) < 5


class FickleDisk(Journal):
    """Takes no rows that hold "big"."""

    def append(self, rows):
        rows = list(rows)
        time.sleep(0.01)
        if any("big" in row["id"] for row in rows):
            raise OSError(28, "No space left on device")
        super().append(rows)


def test_a_group_that_cannot_be_written(tmp_path):
    """Every task learns what became of its own rows: those that fit are there."""

    async def all_at_once():
        names = [f"big {i}" if i % 5 == 2 else str(i) for i in range(20)]
        tasks = [writer.append([{"id": name}]) for name in names]
        return dict(zip(names, await asyncio.gather(*tasks, return_exceptions=True), strict=True))

    with FickleDisk(tmp_path / "part-00000.jsonl") as journal:
        writer = GroupWriter(journal)
        errors = asyncio.run(all_at_once())
        writer.close()
    kept = {row["id"] for row in read_trajectories(tmp_path)}
    assert kept == {name for name, error in errors.items() if error is None}
    assert kept == {name for name in errors if "big" not in name}
    lost = [error for error in errors.values() if error is not None]
    assert all(isinstance(e, GenerateError) and "No space left" in str(e) for e in lost)


def test_seals():
    row = sealed({"id": "1", "content": "half \ud83d", "usage": {"x": 0.1}, "n": 10**30})
    again = json.loads(json.dumps(row, indent=1))
    assert not is_damaged(again) and again["content"] == "half \ufffd"
    assert not is_damaged({"id": "no seal"})
    for key, value in {"content": "half", "n": 10**30 + 1, "usage": None}.items():
        assert is_damaged({**again, key: value})
    assert is_damaged({key: value for key, value in again.items() if key != "n"})


def test_a_last_line_without_a_line_break(tmp_path):
    """Whole, it is a row, as in files written by hand; torn, it is none; other lines may not be."""
    file = tmp_path / "part-00000.jsonl"
    file.write_text('{"id": "1"}\n{"id": "2"}')
    assert [row["id"] for row in read_trajectories(file)] == ["1", "2"]
    with Journal(file) as journal:
        journal.append([{"id": "3"}])
    assert [row["id"] for row in read_trajectories(file)] == ["1", "2", "3"]
    file.write_text('{"id": "1"}\n{"id": "2')
    assert [row["id"] for row in read_trajectories(file)] == ["1"]
    file.write_text('{"id": "1\n{"id": "2"}\n')
    with pytest.raises(TrajectoryError, match="line 1 is not a JSON object"):
        list(read_trajectories(file))


def test_draws_follow_the_scores():
    """Frequencies over 40,000 rows, within five standard errors of each probability."""
    rows = 40_000
    scores = torch.tensor([0.3, -1.0, 2.0, float("-inf"), -4.0, 1.1, float("-inf")])
    probs = scores.double().softmax(-1)
    draws = Draws(list(range(rows)), 2, None)
    for _ in range(2):
        chosen = draws.choose(scores.expand(rows, -1), greedy=False)
        share = torch.bincount(chosen, minlength=7).double() / rows
        error = (probs * (1 - probs) / rows).sqrt()
        assert ((share - probs).abs() <= 5 * error).all(), (share, probs)
    # A row's draws do not depend on its neighbours, and its second is not its first.
    first, second = (Draws([s, 7], 2, None).choose(scores.expand(2, -1), False) for s in (1, 2))
    assert first[1] == second[1]
    one = Draws(list(range(64)), 2, None)
    steps = [one.choose(scores.expand(64, -1), False) for _ in range(2)]
    assert (steps[0] != steps[1]).any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": {"n": 2}}, r"`generate\.extra`: `n` cannot be set here"),
        ({"budget": {"usd": 1.0}}, r"`budget\.usd` needs `price: "),
        ({"budget": {}}, r"`generate\.budget`: a budget needs `tokens`, `usd`, or both"),
        ({"budget": {"tokens": 9}, "max_tokens": None}, r"`budget` needs `max_tokens`"),
        ({"extra": {"max_completion_tokens": 9}}, r"`max_tokens: 4096` would both be sent"),
        ({"prompts": []}, r"generate\.prompts"),
        ({"prompts": {"path": "p", "prompt": "a", "messages": "b"}}, r"give one of them"),
        ({"temprature": 1}, r"did you mean `temperature`"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, changes, says):
    generate = {"prompts": "p.jsonl", "output": "out", **changes}
    path = tmp_path / "recipe.yml"
    path.write_text(json.dumps({"teacher": {"model": "m"}, "generate": generate}))
    with pytest.raises(ConfigError, match=says):
        load_recipe(path)


def test_a_batch_that_fits_in_part():
    """Two requests of 110 + 256 tokens and a few bytes; then what they left, then nothing."""
    args = GenerateArgs(prompts=["p"], output="o", max_tokens=110, budget={"tokens": 1000})
    requests = [Request(Prompt(str(n), [{"role": "user", "content": "a"}], {}), 0) for n in "abc"]

    async def spend():
        meter = Meter(args, Tally())
        assert await meter.reserve(requests) == 2 and not meter.stopped
        used = {"prompt_tokens": 10, "completion_tokens": 10}
        await meter.settle(requests[:2], [used, used])
        assert await meter.reserve(requests[2:]) == 1
        await meter.settle(requests[2:], [{"prompt_tokens": 700, "completion_tokens": 9}])
        assert await meter.reserve(requests) == 0 and meter.stopped

    asyncio.run(spend())


@pytest.mark.parametrize("budget", [{"tokens": 900}, None])
def test_a_halt_ends_the_wait_for_budget(budget):
    args = GenerateArgs(prompts=["p"], output="o", max_tokens=110, budget=budget)
    requests = [Request(Prompt("a", [{"role": "user", "content": "a"}], {}), n) for n in range(2)]

    async def wait():
        meter = Meter(args, Tally())
        assert await meter.reserve(requests) == 2
        waiting = [asyncio.create_task(meter.reserve(requests)) for _ in range(3)] if budget else []
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        await meter.halt()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [0] * len(waiting)
        assert await meter.reserve(requests) == 0 and not meter.stopped

    asyncio.run(wait())


def test_a_recipe_may_be_short(tmp_path):
    path = tmp_path / "recipe.yml"
    generate = {"prompts": ["a.jsonl", {"path": "b", "split": "dev"}], "output": "out"}
    path.write_text(json.dumps({"teacher": {"model": "m"}, "generate": generate}))
    args = load_recipe(path).generate
    assert [(p.path, p.split) for p in args.prompts] == [("a.jsonl", "train"), ("b", "dev")]
    assert (args.n, args.temperature, args.seed) == (1, 0.6, 0)
