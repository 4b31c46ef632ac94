"""Rows and datasets that cannot be captured are named before a model loads, and edits are seen."""

import json
import os

import pytest
import yaml
from support.axolotl_run import BASE
from support.cli import distill_here

from axolotl_distill.store import open_store

pytestmark = pytest.mark.axolotl

GOOD = {
    "id": "first",
    "messages": [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "At nine."},
    ],
}


def chat(**changes):
    """The good chat with its second turn changed; None removes a key."""
    turn = {**GOOD["messages"][1], **changes}
    turn = {name: value for name, value in turn.items() if value is not None}
    return {"id": "odd", "messages": [GOOD["messages"][0], turn]}


@pytest.fixture
def config(tmp_path, tiny_llama_dir):
    """Writes a YAML that captures `rows.jsonl`, with a teacher that is not there: nothing that is
    refused in time asks for it."""

    def write(teacher="./no-such-teacher", **dataset):
        values = {
            **BASE,
            "base_model": str(tiny_llama_dir),
            "output_dir": str(tmp_path / "out"),
            "distill": {
                "capture": {
                    "teacher": str(teacher),
                    "output": str(tmp_path / "store"),
                    "datasets": [
                        {"path": str(tmp_path / "rows.jsonl"), "type": "chat_template", **dataset}
                    ],
                    "k": 4,
                },
            },
            "datasets": [{"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}],
        }
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def write_rows(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


ODD = {
    "no turns": ({"id": "odd", "messages": []}, "`messages` is empty"),
    "null": ({"id": "odd", "messages": None}, "`messages` is null"),
    "absent": ({"id": "odd"}, "`messages` is null"),
    "no content": (chat(content=None), "turn 2 (assistant): `content` is missing"),
    "no role": (chat(role=None), "turn 2 has no `role`, it has content"),
    "unknown role": (chat(role="asistant"), "role `asistant`"),
    "an image": (
        {"id": "odd", "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "no text",
    ),
    "a number": (chat(content=7), "7"),
    "a turn that is none": ({"id": "odd", "messages": ["Well?"]}, "Well?"),
    "messages that are none": ({"id": "odd", "messages": "Well?"}, "Well?"),
    "no object": ("[1, 2]", "row 2"),
    "no JSON": ('{"messages": [', "row 2"),
}


@pytest.mark.parametrize("row, about", ODD.values(), ids=ODD)
def test_an_odd_chat_is_named(tmp_path, config, row, about):
    path = write_rows(tmp_path, [GOOD, row, GOOD])
    done = distill_here("capture", config(), check=False)
    assert done.returncode == 1 and about in done.stderr
    assert str(path) in done.stderr and "row 2" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name, about",
    [
        ("alternate", "row 2 (id odd) cannot be tokenised"),
        ("content", "Conversation roles must alternate"),
    ],
)
def test_a_template_that_refuses_a_row(tmp_path, config, name, about):
    turn = {"role": "assistant", "content": "Ten."}
    write_rows(tmp_path, [GOOD, {"id": "odd", "messages": [*GOOD["messages"], turn]}])
    template = (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    )
    done = distill_here(
        "capture", config(chat_template="jinja", chat_template_jinja=template), check=False
    )
    assert done.returncode == 1 and about in done.stderr


@pytest.mark.parametrize(
    "rows, dataset, about",
    [
        ([GOOD], {"path": "./nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ([], {}, "no rows"),
        ([{"prompt": "?", "answer": "!"}], {}, "has no `messages`, it has prompt, answer"),
        ([GOOD], {"field_messages": "chat"}, "has no `chat`, it has id, messages"),
        ([GOOD], {"split": "test"}, "test"),
    ],
)
def test_a_dataset_that_is_none(tmp_path, config, rows, dataset, about):
    write_rows(tmp_path, rows)
    done = distill_here("capture", config(**dataset), check=False)
    assert done.returncode == 1 and about in done.stderr


def test_what_is_no_fault(tmp_path, config, tiny_llama_dir):
    """A text in parts, and a role that the config explains."""
    write_rows(tmp_path, [chat(content=[{"type": "text", "text": "At nine."}])])
    done = distill_here("capture", config(tiny_llama_dir))
    assert "captured 1 rows" in done.stdout
    write_rows(tmp_path, [chat(role="oracle")])
    named = config(tiny_llama_dir, roles={"assistant": ["oracle"], "user": ["user"]})
    distill_here("capture", named, "--output", tmp_path / "named")
    assert open_store(tmp_path / "named").num_rows == 1


@pytest.mark.parametrize("where", ["file", "folder"])
def test_an_edit_that_leaves_size_and_time(tmp_path, config, tiny_llama_dir, where):
    """The cache of `datasets` is keyed by names and times; the text must be the new one."""
    path = write_rows(tmp_path, [GOOD])
    dataset = {}
    if where == "folder":
        (tmp_path / "folder").mkdir()
        path = path.rename(tmp_path / "folder" / "rows.jsonl")
        dataset = {"path": str(tmp_path / "folder")}
    distill_here("capture", config(tiny_llama_dir, **dataset), "--output", tmp_path / "old")
    before = path.stat()
    path.write_text(path.read_text().replace("At nine.", "At five."))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    distill_here("capture", config(tiny_llama_dir, **dataset), "--output", tmp_path / "new")
    texts = [open_store(tmp_path / name).manifest.source["fingerprint"] for name in ("old", "new")]
    assert texts[0] != texts[1]
    again = distill_here(
        "capture", config(tiny_llama_dir, **dataset), "--output", tmp_path / "old", check=False
    )
    assert again.returncode == 1 and "another `source`" in again.stderr
