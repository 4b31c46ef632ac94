"""The answers of servers on disk: kept through kills, shared, and never the wrong ones."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from axolotl_distill.config.server import ServerArgs
from axolotl_distill.errors import FilterError
from axolotl_distill.filter.answers import Answers
from axolotl_distill.filter.ask import Question, ask

WRITE = """
import sys
from pathlib import Path
from axolotl_distill.filter.answers import Answers
with Answers(Path(sys.argv[1])) as answers:
    for number in range(int(sys.argv[2]), 10 ** 9):
        answers.put(f"key {number}", f"row {number}", f"Score: {number}")
        print(number, flush=True)
"""


def test_what_was_kept_is_there_after_a_kill(tmp_path):
    """SIGKILL at any moment, five times over: all that `put` returned for is read again."""
    draw, done = random.Random(0), 0
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path), str(done)],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            said = [writer.stdout.readline() for _ in range(draw.randrange(1, 40))]
            os.kill(writer.pid, signal.SIGKILL)
            said += writer.stdout.read().split()  # what it had kept before it died
            done = int(said[-1]) + 1
        with Answers(tmp_path) as answers:
            found = [answers.get(f"key {number}") for number in range(done)]
        assert found == [f"Score: {number}" for number in range(done)]
    assert [path.name for path in tmp_path.glob("damaged*")] == []


def test_two_runs_share_them(tmp_path):
    with Answers(tmp_path) as one, Answers(tmp_path) as other:
        one.put("a", "row", {"score": [1.5, None]})
        other.put("b", "row", "é \ud83d")
        assert other.get("a") == {"score": [1.5, None]}
        assert one.get("b") == "é \ud83d"
        assert one.get("c") is None


def spoil_everything(path):
    path.write_bytes(b'{"key": "an old journal"}\n' * 500)


def spoil_pages(path):
    data = bytearray(path.read_bytes())
    data[4096:12_288] = bytes(range(256)) * 32
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [spoil_everything, spoil_pages])
def test_a_damaged_file_is_put_aside_and_said(tmp_path, caplog, spoil):
    for _ in range(2):
        with Answers(tmp_path) as answers:
            for number in range(200):
                answers.put(f"key {number}", "row", "x" * 100)
        spoil(tmp_path / "answers.sqlite")
        damaged = (tmp_path / "answers.sqlite").read_bytes()
        with Answers(tmp_path) as answers:
            assert answers.get("key 1") is None
            answers.put("key 1", "row", "again")
            assert answers.get("key 1") == "again"
        aside = sorted(tmp_path.glob("damaged-*-answers.sqlite"))
        assert aside[-1].read_bytes() == damaged
        assert "is damaged" in caplog.text and aside[-1].name in caplog.text
    assert len(aside) == 2


def test_an_answer_that_is_not_what_was_kept_is_no_answer(tmp_path):
    with Answers(tmp_path) as answers:
        answers.put("a", "row", "Score: 7")
        answers.put("b", "row", "Score: 7")
    with closing(sqlite3.connect(tmp_path / "answers.sqlite")) as database, database:
        database.execute("UPDATE answers SET value = '\"Score: 9\"' WHERE key = 'a'")
    with Answers(tmp_path) as answers:
        assert (answers.get("a"), answers.get("b")) == (None, "Score: 7")


def test_a_file_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(FilterError, match=r"answers\.sqlite.*cannot be used"):
        Answers(tmp_path)


def test_a_signal_that_comes_as_a_run_of_the_loop_ends(tmp_path, monkeypatch):
    """Ends the questions as at any other moment: it left a stop behind in the loop, over which the
    next run tripped, and the command said that nobody expected this."""
    first, second = (Question("judge", name, "/chat/completions", {}) for name in "ab")

    def signalled():
        raise KeyboardInterrupt

    def get(self, key):
        if key == second.key:
            asyncio.get_running_loop().call_soon(signalled)
        return 7

    monkeypatch.setattr(Answers, "get", get)
    server = ServerArgs(base_url="http://127.0.0.1:9/v1", concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        list(ask(server, tmp_path, [first, second], lambda answer: answer))
