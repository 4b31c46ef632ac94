"""The generate command against a real server on loopback: what is asked, kept and paid for."""

import fcntl
import json
import random
import threading
import time
from collections import Counter

import pytest
from support.faulty_server import KINDS, FaultyServer
from support.recipes import CHAT, Recipe, say


def test_nothing_is_lost_doubled_or_misattributed(tmp_path):
    """Every kind of fault on the first tries of a request; answers in another order than asked."""
    rng = random.Random(5)
    tries = Counter()
    seen = Counter()

    def faults(number, path, body):
        tries[body["seed"]] += 1
        if tries[body["seed"]] > 2 or rng.random() > 0.35:
            return None
        kind = rng.choice(KINDS)
        seen[kind] += 1
        return kind

    def chat(body):
        time.sleep(rng.random() * 0.05)
        return say(body)

    with FaultyServer({CHAT: chat}, faults) as server:
        recipe = Recipe(tmp_path, server.url, 40, server={"timeout": 1.5, "concurrency": 16}, n=3)
        done = recipe.run()
        assert done.exit_code == 0, done.output
        asked = [(request.headers["idempotency-key"], request.body) for request in server.requests]
    assert set(seen) == set(KINDS)
    rows = recipe.rows()
    assert len(rows) == len({row["id"] for row in rows}) == 120
    assert {(row["meta"]["answer"], row["sample"]) for row in rows} == {
        (i, sample) for i in range(40) for sample in range(3)
    }
    keys = {}
    for key, body in asked:
        assert keys.setdefault(key, body) == body
    # An answer that came whole and was of no use is asked for under another key.
    assert len({json.dumps(body, sort_keys=True) for body in keys.values()}) == 120 <= len(keys)
    assert [row["id"] for row in rows] != sorted(row["id"] for row in rows)
    for row in rows:
        body = next(body for key, body in keys.items() if key.endswith("-" + row["id"]))
        assert row["messages"] == [{"role": "user", "content": f"question {row['meta']['answer']}"}]
        assert body["messages"] == row["messages"]
        assert row["content"] == f"question {row['meta']['answer']} / {body['seed']}"
        assert row["usage"] == {"prompt_tokens": 10, "completion_tokens": 30}
        assert (row["finish_reason"], row["teacher"]) == ("stop", "Qwen/Qwen3-8B")
    # What arrived in full was never asked for again.
    assert len(server.answered) == 120
    assert "120 of 120 completions" in done.output


def test_requests_under_way_are_bounded(tmp_path):
    lock, now, most = threading.Lock(), 0, 0

    def chat(body):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        return say(body)

    with FaultyServer({CHAT: chat}) as server:
        assert Recipe(tmp_path, server.url, 30, server={"concurrency": 5}).run().exit_code == 0
    assert most == 5


def test_what_is_asked(tmp_path):
    """The recipe's settings reach the server, and what it says reaches the row."""
    logprobs = {"content": [{"token": "token_id:7", "logprob": -0.5, "top_logprobs": []}]}

    def chat(body):
        kind = int(body["messages"][-1]["content"].split()[-1])
        answer = say(
            body,
            **[
                {"content": "<think>\nhm\n</think>\n\n4"},
                {"content": "4", "reasoning_content": "hm"},
                {"content": "4", "reasoning": "hm", "reasoning_content": None},
                {"content": None, "reasoning": "hm"},
                {"content": "half an emoji \ud83d"},
            ][kind],
        )
        answer["choices"][0]["logprobs"] = logprobs
        if kind == 4:
            del answer["usage"]
        return answer

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(
            tmp_path,
            server.url,
            5,
            server={"engine": "vllm"},
            temperature=0.7,
            top_p=0.9,
            max_tokens=64,
            system="Be brief.",
            seed=3,
            logprobs=4,
            extra={"top_k": 20, "chat_template_kwargs": {"enable_thinking": True}},
        )
        done = recipe.run()
        assert done.exit_code == 0, done.output
        body = server.requests[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    del body["messages"], body["seed"]
    assert body == {
        "model": "Qwen/Qwen3-8B",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "logprobs": True,
        "top_logprobs": 4,
        "return_tokens_as_token_ids": True,
        "top_k": 20,
        "chat_template_kwargs": {"enable_thinking": True},
    }
    rows = {row["meta"]["answer"]: row for row in recipe.rows()}
    assert all(row["logprobs"] == logprobs["content"] for row in rows.values())
    fields = ("thinking_form", "reasoning_content", "content")
    assert [tuple(rows[i][field] for field in fields) for i in range(5)] == [
        ("tags", "hm", "4"),
        ("apart", "hm", "4"),
        ("apart", "hm", "4"),
        ("apart", "hm", ""),
        ("none", None, "half an emoji \ufffd"),
    ]
    assert rows[4]["usage"] is None and "1 came without a count" in done.output


def test_a_server_without_logprobs_is_not_paid_on(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 40, server={"concurrency": 1}, logprobs=2)
        done = recipe.run()
        assert done.exit_code == 1 and "without log-probabilities" in done.output
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("budget", "price"),
    [({"tokens": 2000}, None), ({"usd": 0.004}, {"input": 1.0, "output": 2.0})],
)
def test_the_budget_is_never_exceeded(tmp_path, budget, price):
    """Over all runs, with answers of every length, and with what was under way kept."""
    rng = random.Random(2)

    def chat(body):
        time.sleep(rng.random() * 0.02)
        answer = say(body)
        answer["usage"] = {"prompt_tokens": 9, "completion_tokens": rng.randint(1, 100)}
        return answer

    def spent():
        usage = [row["usage"] for row in recipe.rows()]
        prompt, completion = (
            sum(u[name] for u in usage) for name in ("prompt_tokens", "completion_tokens")
        )
        return prompt + completion if price is None else (prompt + 2 * completion) / 1e6

    limit = next(iter(budget.values()))
    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(tmp_path, server.url, 400, max_tokens=100, budget=budget, price=price)
        for factor in (1, 1.5):
            recipe.values["generate"]["budget"] = {
                name: type(value)(value * factor) for name, value in budget.items()
            }
            done = recipe.run()
            assert done.exit_code == 0, done.output
            assert "budget is used up" in done.output and "the same command goes on" in done.output
            assert len(recipe.rows()) == len(server.answered)
            # What is left does not cover one more request: 100 tokens and the prompt's bytes.
            assert 0.6 * limit * factor < spent() <= limit * factor
        asked = len(server.requests)
        assert recipe.run().exit_code == 0 and len(server.requests) == asked
        del recipe.values["generate"]["budget"]
        recipe.prompts(80)
        assert recipe.run().exit_code == 0
    assert len({row["id"] for row in recipe.rows()}) == 80


def test_no_budget_without_usage(tmp_path):
    def chat(body):
        return {**say(body), "usage": None}

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(
            tmp_path, server.url, 50, server={"concurrency": 2}, budget={"tokens": 1_000_000}
        )
        done = recipe.run()
        assert done.exit_code == 1 and "gives no `usage`" in done.output
        assert len(recipe.rows()) == len(server.answered) <= 4
        again = recipe.run()
        assert again.exit_code == 1 and "came without `usage`" in again.output
        assert len(server.answered) <= 4
        del recipe.values["generate"]["budget"]
        assert recipe.run().exit_code == 0
    assert len(recipe.rows()) == 50


def test_settings_that_matter_may_not_change(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 4)
        assert recipe.run("--limit", "3").exit_code == 0
        assert len(recipe.rows()) == 3
        recipe.values["generate"] |= {"temperature": 1.0, "system": "Be brief."}
        done = recipe.run()
        assert done.exit_code == 1
        assert "temperature: 0.6 before, 1.0 now" in done.output
        assert "system: None before" in done.output and "max_tokens" not in done.output
        recipe.values["generate"] |= {"temperature": 0.6, "system": None, "n": 2}
        recipe.values["teacher"]["server"]["concurrency"] = 2
        recipe.prompts(6)
        assert recipe.run().exit_code == 0
        assert len(server.answered) == len({row["id"] for row in recipe.rows()}) == 12
        done = recipe.run()
        assert "complete: 12 completions" in done.output and len(server.requests) == 12
        # A server that knows the keys must not answer another generation with this one's text.
        other = Recipe(tmp_path, server.url, 6, output=str(tmp_path / "other"), temperature=1.0)
        assert other.run().exit_code == 0
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 18
    about = json.loads((recipe.output / "generation.json").read_text())
    assert about["n"] == 2 and about["terms"]["verdict"] == "permitted"


def test_one_writer_a_folder(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 2)
        assert recipe.run().exit_code == 0
        with (recipe.output / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            recipe.prompts(3)
            done = recipe.run()
            assert done.exit_code == 1 and "another process" in done.output
        assert recipe.run().exit_code == 0
        strange = Recipe(tmp_path, server.url, 2, output=str(tmp_path))
        done = strange.run()
        assert done.exit_code == 1 and "holds something else" in done.output


def test_terms_come_before_anything_is_asked(tmp_path):
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 2, teacher={"model": "gpt-4o"})
        done = recipe.run()
        assert done.exit_code == 1 and "teacher.terms" in done.output
        assert not server.requests and not recipe.output.exists()
        recipe.values["teacher"]["terms"] = "Our contract of May 2026 allows it."
        done = recipe.run()
        assert done.exit_code == 0 and "Our contract of May 2026" in done.output
    about = json.loads((recipe.output / "generation.json").read_text())
    assert about["terms"]["agreement"] == "Our contract of May 2026 allows it."


def test_examples_are_shown_and_not_kept(tmp_path):
    examples = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 3, system="Be brief.", examples=examples)
        assert recipe.run().exit_code == 0
        for request in server.requests:
            roles = [message["role"] for message in request.body["messages"]]
            assert roles == ["system", "user", "assistant", "user"]
            assert request.body["messages"][1:3] == examples
        for row in recipe.rows():
            assert [message["role"] for message in row["messages"]] == ["system", "user"]
        recipe.values["generate"]["examples"] = examples[:1]
        refused = recipe.run()
        assert refused.exit_code == 1 and "generate.examples" in refused.output
