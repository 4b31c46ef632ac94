"""What servers answer, from the wire to the dataset: nothing vanishes, and what is odd is said."""

import json

import pyarrow.parquet as pq
import pytest
from support.faulty_server import FaultyServer
from support.recipes import CHAT, Recipe

from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.run import Filter

ARGUMENTS = '{"to": "Ulm"}'
FUNCTION = {"name": "find_train", "arguments": ARGUMENTS}
CALL = {"id": "c1", "type": "function", "function": FUNCTION}
TOOL = {"type": "function", "function": {"name": "find_train", "parameters": {"type": "object"}}}


def answer(finish="stop", usage=True, **message):
    usage = {"prompt_tokens": 5, "completion_tokens": 7} if usage else None
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


# name -> (answer, thinking, content, of the message what else must be kept)
ANSWERS = {
    "plain": (answer(content="<think>\nI add.\n</think>\n\nIt is 12."), "I add.", "It is 12.", {}),
    "call": (
        answer("tool_calls", content=None, tool_calls=[CALL]),
        None,
        "",
        {"tool_calls": [CALL]},
    ),
    "thought call": (
        answer("stop", content="<think>\nI look.\n</think>\n\n", tool_calls=[CALL]),
        "I look.",
        "",
        {"tool_calls": [CALL]},
    ),
    "old call": (
        answer("function_call", content=None, function_call=FUNCTION),
        None,
        "",
        {"function_call": FUNCTION},
    ),
    "refusal": (answer(content=None, refusal="I cannot."), None, "", {"refusal": "I cannot."}),
    "notes": (
        answer(content="See [1].", annotations=[{"type": "url_citation", "title": "x"}]),
        None,
        "See [1].",
        {"annotations": [{"type": "url_citation", "title": "x"}]},
    ),
    "parts": (
        answer(
            content=[
                {"type": "thinking", "thinking": [{"type": "text", "text": "I add."}]},
                {"type": "text", "text": "It is "},
                {"type": "text", "text": "12."},
            ]
        ),
        "I add.",
        "It is 12.",
        {},
    ),
    "reasoning": (answer(content="It is 12.", reasoning="I add."), "I add.", "It is 12.", {}),
    "nested": (
        answer(content="<think>\nWrite <think>x</think>.\n</think>\n\nUse re.sub."),
        "Write <think>x</think>.",
        "Use re.sub.",
        {},
    ),
    "literal": (answer(content="Put `</think>` there. "), None, "Put `</think>` there. ", {}),
    "closing": (answer(content="I add.\n</think>\n\nIt is 12."), "I add.", "It is 12.", {}),
    "EOS": (answer("eos_token", content="It is 12."), None, "It is 12.", {}),
    "STOP": (answer("STOP", content="It is 12."), None, "It is 12.", {}),
    "odd": (answer("whatever", content="It is 12."), None, "It is 12.", {}),
    "null": (answer(None, content="It is 12."), None, "It is 12.", {}),
    "cut": (answer("length", content=None, reasoning_content="I add and"), "I add and", "", {}),
    "half": (answer(content="half \ud83d"), None, "half \ufffd", {}),
    "zero": (answer(content="a\0b\u2028c"), None, "a\0b\u2028c", {}),
}
FAULTY = {
    "error 200": (
        {"error": {"message": "Provider returned error", "metadata": {"raw": "upstream is busy"}}},
        "upstream is busy",
    ),
    "no choices": ({"choices": []}, "`choices` must hold one"),
    "empty": (answer(content=""), "the answer is empty"),
    "spaces": (answer(content=" \n"), "the answer is empty"),
    "empty call": (answer(content=None, tool_calls=[]), "the answer is empty"),
    "aborted": (answer("abort", content="It"), "'abort': the completion is not whole"),
    "image": (answer(content=[{"type": "image_url"}]), "part that is not text"),
}


@pytest.fixture
def asked(tmp_path):
    """A recipe whose prompts name the answer they get."""
    server = FaultyServer({CHAT: lambda body: known[body["messages"][-1]["content"]]})
    known = {name: given[0] for name, given in {**ANSWERS, **FAULTY}.items()}
    with server:
        recipe = Recipe(tmp_path, server.url, 1, server={"retries": 0})
        recipe.server = server

        def prompts(*rows):
            path = tmp_path / "prompts.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return recipe

        recipe.ask = prompts
        yield recipe


def dataset(folder):
    files = sorted((folder / "data").glob("*.parquet"))
    return {row["id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def filtered(recipe, **values):
    """(rows of the dataset by what they were asked, those that were dropped, warnings)."""
    args = FilterArgs(output=str(recipe.folder / "dataset"), split={"eval": 0.0}, **values)
    told = []
    Filter(args, recipe.output, warn=told.append).run()
    folder = recipe.folder / "dataset"
    kept = {row["messages"][0]["content"]: row for row in dataset(folder).values()}
    dropped = [
        row for file in (folder / "rejected").glob("*") for row in pq.read_table(file).to_pylist()
    ]
    return kept, dropped, "\n".join(told)


def test_what_is_kept_of_an_answer(asked):
    done = asked.ask(*({"prompt": name, "tools": [TOOL]} for name in ANSWERS)).run()
    assert done.exit_code == 0, done.output
    assert all(request.body["tools"] == [TOOL] for request in asked.server.requests)
    rows = {row["messages"][0]["content"]: row for row in asked.rows()}
    for name, (_, thinking, content, message) in ANSWERS.items():
        row = rows[name]
        assert (row["reasoning_content"], row["content"]) == (thinking, content), name
        assert (row["message"] or {}) == message and row["tools"] == [TOOL], name
    for said in (
        "3 call tools",
        "1 are refusals",
        "1 have thinking and no answer",
        "1 close a thinking that they do not open",
        "1 ended with `whatever`",
        "1 ended with `None`",
    ):
        assert said in done.output, said

    kept, dropped, told = filtered(asked, reasoning="field")
    assert not dropped and kept.keys() == ANSWERS.keys()
    for name, row in kept.items():
        said = row["messages"][-1]
        thinking, content = ANSWERS[name][1:3]
        assert said["reasoning_content"] == thinking, name
        assert said["content"] == ("I cannot." if name == "refusal" else content)
        calls = [call["function"] for call in said["tool_calls"] or ()]
        assert calls == ([FUNCTION] if "call" in name else []), name
        assert json.loads(row["tools"]) == [TOOL]
    assert "1 rows are refusals" in told and "annotations" in told

    tagged, _, _ = filtered(asked)
    said = tagged["nested"]["messages"][-1]["content"]
    assert said == "<think>\nWrite <think>x</think>.\n</think>\n\nUse re.sub."
    kept, dropped, _ = filtered(asked, steps=["deduplicate", {"format": {"finished": False}}])
    # A call is an answer, and no two calls are duplicates because both are without text.
    assert {"call", "thought call", "old call"} <= kept.keys()
    assert {json.loads(row["row"])["messages"][0]["content"] for row in dropped} == {
        "refusal",
        "cut",
    }


def test_what_is_put_aside(asked):
    rows = [{"prompt": name} for name in [*FAULTY, "plain"]]
    done = asked.ask(*rows).run()
    assert done.exit_code == 0, done.output
    assert "7 requests were refused" in done.output and "1 of 8 completions" in done.output
    reasons = {row["messages"][0]["content"]: row["reason"] for row in asked.failed()}
    for name, (_, said) in FAULTY.items():
        assert said in reasons[name], name


def test_200_empty_answers_are_not_done(asked):
    done = asked.ask(*({"prompt": "empty", "number": n} for n in range(200))).run()
    assert done.exit_code == 1 and "the answer is empty" in done.output
    assert "0 of 200 completions" in done.output and not asked.rows()


def test_empty_answers_count_in_the_budget(asked):
    """12 tokens each, though nothing came of them."""
    rows = [{"prompt": name, "n": n} for n in range(10) for name in ("plain", "empty")]
    asked.values["generate"] |= {"max_tokens": 10, "budget": {"tokens": 400}}
    asked.values["teacher"]["server"]["concurrency"] = 1
    done = asked.ask(*rows).run()
    assert "budget is used up" in done.output
    # A request may cost 10 + 256 + the prompt's bytes: with 12 tokens each, fewer than ten fit.
    assert len(asked.server.requests) <= 10


def test_tags_as_the_recipe_names_them(asked):
    asked.values["generate"]["thinking_opened"] = False
    assert asked.ask({"prompt": "closing"}, {"prompt": "plain"}).run().exit_code == 0
    rows = {row["messages"][0]["content"]: row for row in asked.rows()}
    assert rows["closing"]["content"] == "I add.\n</think>\n\nIt is 12."
    assert rows["plain"]["reasoning_content"] == "I add."
    kept, _, _ = filtered(asked, reasoning="field")
    assert kept["closing"]["messages"][-1]["content"] == "I add.\n</think>\n\nIt is 12."
    asked.values["generate"] |= {"thinking_tags": [], "output": str(asked.folder / "other")}
    assert asked.run().exit_code == 0
    asked.values["generate"]["thinking_tags"] = [["<a>", "<a>"]]
    wrong = asked.run()
    assert wrong.exit_code == 1 and "opening tag, closing tag" in wrong.output


def test_secrets_are_kept_nowhere(asked, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key-1234")
    refused = (400, {"error": {"message": "bad key sk-very-secret-key-1234 for ann:pa55word"}})
    asked.server.handlers[CHAT] = lambda body: (
        refused if body["messages"][-1]["content"] == "no" else ANSWERS["plain"][0]
    )
    url = asked.server.url.replace("://", "://ann:pa55word-x@")
    asked.values["teacher"]["server"]["base_url"] = url
    asked.values["generate"]["extra"] = {"api_key": "sk-other-secret", "top_k": 3}
    done = asked.ask({"prompt": "no"}, {"prompt": "plain"}).run()
    assert done.exit_code == 0, done.output
    assert asked.server.requests[0].body["api_key"] == "sk-other-secret"
    filtered(asked)
    texts = [file.read_text() for file in asked.folder.rglob("*.json*") if file.is_file()]
    texts += [file.read_text() for file in asked.folder.rglob("*.md")] + [done.output]
    for secret in ("very-secret", "pa55word-x", "sk-other-secret"):
        assert not any(secret in text for text in texts), secret
