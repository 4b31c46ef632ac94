"""The judge and reward servers, over real HTTP, with faults."""

import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.faulty_server import KINDS, FaultyServer
from support.trajectories import trajectory

from axolotl_distill.config.server import ServerArgs
from axolotl_distill.errors import ConfigError, ServerError
from axolotl_distill.filter.step import Around
from axolotl_distill.filter.steps.judge import JudgeArgs, JudgeStep
from axolotl_distill.filter.steps.reward import RewardArgs, RewardStep

TESTS = Path(__file__).parents[1]
CHAT = "/v1/chat/completions"


def answered(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def grade(body):
    """A judge whose score is the number in the answer it is shown."""
    (message,) = body["messages"]
    number = message["content"].partition("<answer>\nIt is ")[2].partition("\n")[0]
    return answered(f"It is a fine answer. Score: 1? No.\n**Score: {number}**")


def row(number, **fields):
    return trajectory(number, content=f"<think>\nScore: 9\n</think>\n\nIt is {number}", **fields)


def server_args(server, **values):
    return ServerArgs(base_url=server.url, **{"concurrency": 4, "retries": 6, **values})


def judge(server, path, rows, retries=6, **values):
    args = JudgeArgs(server=server_args(server, retries=retries), **{"model": "j", **values})
    return list(JudgeStep(args, Around(answers=path)).judge(iter(rows)))


def kept(path):
    """The ids of the rows whose answers are in the file, as anybody would read it."""
    with closing(sqlite3.connect(path / "answers.sqlite")) as database:
        return [id for (id,) in database.execute("SELECT row FROM answers ORDER BY row")]


def test_scores(tmp_path):
    rows = [row(n) for n in (0, 3, 7.5, 10)]
    with FaultyServer({CHAT: grade}) as server:
        found = judge(server, tmp_path, rows, min_score=5)
        assert [v.score for v in found] == [0, 3, 7.5, 10]
        assert [v.keep for v in found] == [False, False, True, True]
        assert {v.reason for v in found} == {"", "judged below 5"}
        assert all(v.keep for v in judge(server, tmp_path, rows))
        body = server.requests[0].body
    assert body["model"] == "j" and body["temperature"] == 0.0 and body["max_tokens"] == 1024
    assert "something?" in body["messages"][0]["content"]
    assert "from 0 (worst) to 10 (best)" in body["messages"][0]["content"]


def test_a_judge_that_is_cut_off(tmp_path):
    """The 1 that it ends with may be the beginning of a 10."""

    def cut(body):
        answer = answered("It is fine. Score: 1")
        return {"choices": [{**answer["choices"][0], "finish_reason": "length"}]}

    with FaultyServer({CHAT: cut}) as server:
        (found,) = judge(server, tmp_path, [row(1)], min_score=5)
    assert (found.score, found.reason) == (None, "the judge gave no score")
    assert "`judge.max_tokens`" in found.detail


def test_calls_of_tools_are_shown(tmp_path):
    """With the tools they could be made to; an answer without text is graded by its calls."""
    called = {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}
    offered = [{"type": "function", "function": {"name": "add"}}]
    with FaultyServer({CHAT: lambda body: answered("Score: 5")}) as server:
        judge(server, tmp_path, [trajectory(1, content="", message=called, tools=offered)])
        text = server.requests[0].body["messages"][0]["content"]
    assert 'Calls: {"name": "add", "arguments": "{\\"a\\": 1}"}' in text
    assert 'Tools: [{"function": {"name": "add"}, "type": "function"}]' in text


def test_order_and_concurrency(tmp_path):
    """Answers come back in another order than asked; at most `concurrency` are under way."""
    busy, most, lock = 0, 0, threading.Lock()

    def slow(body):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        answer = grade(body)
        time.sleep(0.03 if "3" in answer["choices"][0]["message"]["content"] else 0.002)
        with lock:
            busy -= 1
        return answer

    rows = [row(n % 11) | {"id": f"r{n}"} for n in range(60)]
    with FaultyServer({CHAT: slow}) as server:
        assert [v.score for v in judge(server, tmp_path, rows)] == [n % 11 for n in range(60)]
    assert 1 < most <= 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hang"])
def test_faults(tmp_path, kind):
    rows = [row(n) for n in range(8)]
    with FaultyServer(
        {CHAT: grade}, lambda number, *_: kind if number % 3 == 0 else None
    ) as server:
        assert [v.score for v in judge(server, tmp_path, rows)] == list(range(8))
        # "cut" and "cut_json" get as far as a handler, and the answer is lost on the way.
        if kind not in ("cut", "cut_json"):
            assert len(server.answered) == 8


def test_nothing_is_paid_for_twice(tmp_path):
    rows = [row(n) for n in range(10)]
    with FaultyServer({CHAT: grade}) as server:
        judge(server, tmp_path, rows[:6])
        judge(server, tmp_path, rows, min_score=4)
        assert len(server.answered) == 10
        judge(server, tmp_path, rows[:1], model="another")
        judge(server, tmp_path, [rows[0] | {"id": "another"}])
        judge(server, tmp_path, rows[:1], rubric="Is it short?")
        assert len(server.answered) == 13


JUDGE = """
import sys
from pathlib import Path
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.filter.step import Around
from axolotl_distill.filter.steps.judge import JudgeArgs, JudgeStep
sys.path.insert(0, sys.argv[3])
from support.trajectories import trajectory
args = JudgeArgs(server=ServerArgs(base_url=sys.argv[1], concurrency=4), model="j")
rows = (trajectory(n, content=f"It is {n % 10}") for n in range(60))
for number, verdict in enumerate(JudgeStep(args, Around(answers=Path(sys.argv[2]))).judge(rows)):
    print(number, verdict.score, flush=True)
"""


def test_nothing_that_was_paid_for_is_lost_to_a_kill(tmp_path):
    """SIGKILL at four moments. Asked again is only what was on its way then, four at most."""
    with FaultyServer({CHAT: grade}) as server:
        for last in (3, 17, 18, 40, 59):
            command = [sys.executable, "-c", JUDGE, server.url, str(tmp_path), str(TESTS)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as judging:
                said = []
                while len(said) <= last:
                    said.append(judging.stdout.readline().split())
                judging.kill()
            assert said == [[str(n), f"{n % 10:.1f}"] for n in range(last + 1)]
            assert len(kept(tmp_path)) > last
        assert 60 <= len(server.answered) <= 60 + 4 * 4


def test_what_came_before_the_server_died_is_kept(tmp_path):
    rows = [row(n % 10) | {"id": str(n)} for n in range(12)]
    dies = lambda number, *_: "500" if number >= 7 else None  # noqa: E731
    with FaultyServer({CHAT: grade}, dies) as server, pytest.raises(ServerError):
        judge(server, tmp_path, rows, retries=1)
    assert len(kept(tmp_path)) == len(server.answered) == 7
    with FaultyServer({CHAT: grade}) as server:
        assert [v.score for v in judge(server, tmp_path, rows)] == [*range(10), 0, 1]
        assert len(server.answered) == 5


def test_what_is_under_way_when_the_server_fails_is_kept(tmp_path):
    def slow(body):
        time.sleep(0.4)
        return grade(body)

    rows = [row(n) for n in range(4)]
    fails = lambda number, path, body: "500" if "It is 0" in str(body) else None  # noqa: E731
    with FaultyServer({CHAT: slow}, fails) as server, pytest.raises(ServerError):
        judge(server, tmp_path, rows, retries=0)
    assert kept(tmp_path) == [each["id"] for each in rows[1:]]


def test_a_consumer_that_stops(tmp_path):
    with FaultyServer({CHAT: grade}) as server:
        args = JudgeArgs(server=server_args(server), model="j")
        verdicts = JudgeStep(args, Around(answers=tmp_path)).judge(row(n) for n in range(10**9))
        for _, _ in zip(range(20), verdicts, strict=False):
            pass
        verdicts = None
    assert len(kept(tmp_path)) >= 20


def test_rows_without_a_grade(tmp_path):
    replies = iter(
        [answered("Good."), answered("Score: 11"), answered(None), (400, {"error": "too long"})]
    )
    with FaultyServer({CHAT: lambda body: next(replies)}) as server:
        found = judge(server, tmp_path, [row(0)], 0)
        found += judge(server, tmp_path, [row(1)], 0)
        found += judge(server, tmp_path, [row(2)], 0)
        found += judge(server, tmp_path, [row(3)], 0)
    assert [v.reason for v in found] == ["the judge gave no score"] * 3 + [
        "the judge refused the request"
    ]
    assert "too long" in found[3].detail and not any(v.keep for v in found)


def test_thinking_judge_and_own_prompt(tmp_path):
    with FaultyServer({CHAT: lambda body: answered("<think>Score: 2</think>Score: 8")}) as server:
        prompt = '{question} {reference} {answer} {max_score} {"json": {}}'
        given = row(4, meta={"gold": "four {answer}"})
        (found,) = judge(server, tmp_path, [given], prompt=prompt, reference="gold")
        assert found.score == 8
        (message,) = server.requests[0].body["messages"]
    assert "four {answer}" in message["content"], "what is filled in is not filled in again"
    assert message["content"].endswith('It is 4 10 {"json": {}}')


def reward(server, path, tokenizer, engine, rows, **values):
    args = RewardArgs(
        model="r", server=server_args(server, engine=engine), tokenizer=tokenizer, **values
    )
    return list(RewardStep(args, Around(answers=path)).judge(iter(rows)))


def test_reward_servers(tmp_path, tokenizer):
    """Token ids of the reward model's own template go out; raw outputs come back."""
    seen = []

    def vllm(body):
        (ids,) = body["input"]
        seen.append(ids)
        assert body["model"] == "r" and body["use_activation"] is False
        return {"data": [{"index": 0, "label": "L", "probs": [len(ids) - 40.5], "num_classes": 1}]}

    def sglang(body):
        return {"embedding": [len(body["input_ids"]) - 40.5], "meta_info": {"prompt_tokens": 1}}

    rows = [trajectory(content="<think>Hm</think>" + "very " * n) for n in range(1, 9)]
    for n, each in enumerate(rows):
        each["id"] = str(n)
    path = tokenizer.name_or_path
    scores = {}
    for engine, handler in (("vllm", vllm), ("sglang", sglang)):
        faults = lambda number, *_: "500" if number % 4 == 0 else None  # noqa: E731
        with FaultyServer({"/classify": handler}, faults) as server:
            found = reward(server, tmp_path / engine, path, engine, rows, min_score=0.0)
            reward(server, tmp_path / engine, path, engine, rows)
            assert len(server.answered) == 8
        scores[engine] = [v.score for v in found]
        assert [v.keep for v in found] == [score >= 0 for score in scores[engine]]
    assert scores["vllm"] == scores["sglang"]
    text = tokenizer.decode(seen[0])
    assert "<|im_start|>assistant\nvery" in text and "Hm" not in text


def test_rows_too_long_for_the_reward_model_are_not_sent(tmp_path, tokenizer):
    rows = [trajectory(n, content="word " * n) for n in (300, 2, 200, 400, 3, 250)]
    handler = {"/classify": lambda body: {"embedding": [float(len(body["input_ids"]))]}}
    with FaultyServer(handler) as server:
        path = tokenizer.name_or_path
        found = reward(server, tmp_path, path, "sglang", rows, max_tokens=150)
        assert len(server.answered) == 2
    assert [v.keep for v in found] == [False, True, False, False, True, False]
    assert {v.reason for v in found if not v.keep} == {"too long for the reward model"}
    assert found[4].score == found[1].score + 1


def test_reward_with_labels(tmp_path, tokenizer):
    handler = {"/classify": lambda body: {"embedding": [0.0, 3.0]}}
    with FaultyServer(handler) as server:
        path = tokenizer.name_or_path
        (found,) = reward(server, tmp_path, path, "sglang", [row(1)], label=1)
        assert found.score == pytest.approx(0.952574, abs=1e-6)
        for label in (None, 2):
            with pytest.raises(ConfigError, match="2 outputs"):
                reward(server, tmp_path, path, "sglang", [row(1)], label=label)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: -1", None),
        ("Score: −1", None),
        ("Score: .5", 0.5),
        ("Score: +7", 7),
        ("**Score:** 8.5.", 8.5),
        ("Score - 7", 7),
        ("SCORE = **6**/10", 6),
        ("Score: \\(4\\)", 4),
    ],
)
def test_signs_and_points(tmp_path, text, score):
    with FaultyServer({CHAT: lambda body: answered(text)}) as server:
        (found,) = judge(server, tmp_path, [row(0)])
    assert found.score == score and found.keep == (score is not None)
