"""The generate command and servers that refuse, hang or break."""

import time

import pytest
from support.faulty_server import FaultyServer
from support.recipes import CHAT, Recipe, say


def test_a_fatal_answer_stops_the_run_and_keeps_what_came(tmp_path):
    state = {"key": True}

    def chat(body):
        # Slow enough that others are under way when the refusal comes.
        time.sleep(0.05)
        return say(body)

    def faults(number, path, body):
        return "401" if number == 20 and not state["key"] else None

    with FaultyServer({CHAT: chat}, faults) as server:
        recipe = Recipe(tmp_path, server.url, 60)
        state["key"] = False
        done = recipe.run()
        assert done.exit_code == 1
        assert "answered 401" in done.output and "api_key_env" in done.output
        kept = {row["id"] for row in recipe.rows()}
        # 20 before it, and what was under way: seven others, and no more were begun.
        assert 20 <= len(kept) == len(server.answered) <= 27
        assert f"{len(kept)} of 60 completions are there. The same command" in done.output
        state["key"] = True
        assert recipe.run().exit_code == 0
        assert len(server.answered) == 60
    assert len({row["id"] for row in recipe.rows()}) == 60


def test_a_server_that_hangs_is_given_up(tmp_path):
    with FaultyServer({CHAT: say}, lambda number, path, body: "hang") as server:
        recipe = Recipe(tmp_path, server.url, 3, server={"timeout": 0.3, "retries": 1})
        start = time.monotonic()
        done = recipe.run()
        assert time.monotonic() - start < 5.0
        assert done.exit_code == 1 and "refused every request" in done.output
        assert all("`timeout: 0.3`" in row["reason"] for row in recipe.failed())
        assert len(server.requests) == 6
        server.faults = lambda number, path, body: None
        assert recipe.run().exit_code == 0
    assert len(recipe.rows()) == 3


@pytest.mark.parametrize("fault", ["500", "garbage", "hang"])
def test_one_request_that_never_succeeds_does_not_stop_the_others(tmp_path, fault):
    state = {"fault": fault}

    def faults(number, path, body):
        return state["fault"] if body["messages"][-1]["content"] == "question 3" else None

    keys = {"retries": 1, "timeout": 1.0, "concurrency": 2}
    with FaultyServer({CHAT: say}, faults) as server:
        recipe = Recipe(tmp_path, server.url, 30, server=keys)
        done = recipe.run()
        assert done.exit_code == 0 and "29 of 30 completions" in done.output, done.output
        (failed,) = recipe.failed()
        assert failed["meta"]["answer"] == 3
        state["fault"] = None
        assert recipe.run().exit_code == 0
    assert len({row["id"] for row in recipe.rows()}) == 30


def test_which_key_a_bad_answer_is_asked_for_again_under(tmp_path):
    """Cut on the way, it is there for the same key; whole and useless, it would come again."""
    tries = []

    def chat(body):
        tries.append(body)
        return say(body) if len(tries) > 2 else {**say(body), "choices": []}

    with FaultyServer(
        {CHAT: chat}, lambda number, *_: "cut_json" if number == 0 else None
    ) as server:
        assert Recipe(tmp_path, server.url, 1).run().exit_code == 0
        first, *others = (request.headers["idempotency-key"] for request in server.requests)
    assert others == [first, f"{first}-1"]


def test_a_server_that_breaks_is_not_asked_everything(tmp_path):
    """20 requests in a row that come to nothing: it is the server, not the requests."""

    def faults(number, path, body):
        return "500" if number >= 40 else None

    with FaultyServer({CHAT: say}, faults) as server:
        recipe = Recipe(tmp_path, server.url, 500, server={"retries": 0})
        done = recipe.run()
        assert done.exit_code == 1 and "answered 500" in done.output
        assert len(recipe.rows()) == 40 and len(server.requests) < 80


def test_a_refused_request_is_kept_apart_and_tried_again(tmp_path):
    state = {"limit": 5}

    def chat(body):
        if int(body["messages"][-1]["content"].split()[-1]) >= state["limit"]:
            return 400, {"error": {"message": "the prompt is too long"}}
        return say(body)

    with FaultyServer({CHAT: chat}) as server:
        recipe = Recipe(tmp_path, server.url, 8, n=2)
        done = recipe.run()
        assert done.exit_code == 0, done.output
        assert "6 requests were refused" in done.output and "10 of 16" in done.output
        assert {row["meta"]["answer"] for row in recipe.failed()} == {5, 6, 7}
        assert all("too long" in row["reason"] for row in recipe.failed())
        assert len(recipe.rows()) == 10
        state["limit"] = 99
        assert recipe.run().exit_code == 0
        assert len(server.answered) == 16
    assert len({row["id"] for row in recipe.rows()}) == 16
    assert not (recipe.output / "failed").exists()


def test_a_server_that_refuses_everything_is_not_asked_everything(tmp_path):
    no = {CHAT: lambda body: (400, {"error": {"message": "top_logprobs must be at most 20"}})}
    with FaultyServer(no) as server:
        done = Recipe(tmp_path, server.url, 500, logprobs=64).run()
        assert done.exit_code == 1 and "at most 20" in done.output
        assert len(server.requests) < 60
        few = Recipe(tmp_path, server.url, 3, logprobs=64).run()
        assert few.exit_code == 1 and "refused every request" in few.output
