"""Foreign text: what it may do to a terminal, a log line or a card, which is nothing; and the
secrets in it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axolotl_distill.show import as_markdown, fenced, foreign, printable, redact, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("fine\rerror", "fine\\rerror"),
        ("one\nERROR two", "one\\nERROR two"),
        ("a\u202eb\u2066c\u200fd", "a\\u202eb\\u2066c\\u200fd"),
        ("hidden\u200b\ufeff\U000e0041", "hidden\\u200b\\ufeff\\U000e0041"),
        ("half \ud83d", "half \\ud83d"),
        ("line\u2028two", "line\\u2028two"),
        ("tab\tnull\0del\x7f", "tab\\tnull\\x00del\\x7f"),
        ("naïve 中文 👩\u200d💻 می\u200cخواهم", "naïve 中文 👩\u200d💻 می\u200cخواهم"),
        (b"\xff\x1b", "b'\\xff\\x1b'"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_printable_is_harmless_and_can_be_encoded(text):
    shown = printable(text, most=None)
    assert not set(shown) & {chr(code) for code in (*range(32), *range(127, 160))}
    assert shown.isprintable() or all(c.isprintable() or c.isspace() or ord(c) > 127 for c in shown)
    shown.encode()
    if text.isascii() and text.isprintable():
        assert shown == text


def test_long_text_says_how_long_it_is():
    assert printable("x" * 12_345, most=3) == "xxx… (12,345 characters)"
    assert printable("a\n\x1bb", lines=True) == "a\n\\x1bb"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:pa%40ss@host:8000/v1 is down", "https://host:8000/v1 is down"),
        ("http://p@ss:w@host/v1?x=1", "http://host/v1?x=1"),
        ("http://token@host/v1", "http://host/v1"),
        ("Incorrect API key provided: sk-proj-ab_cd12345", "Incorrect API key provided: [hidden]"),
        ("{'Authorization': 'Bearer abcdefgh12345678'}", "{'Authorization': 'Bearer [hidden]'}"),
        ('{"api_key": "0123abcd", "n": 1}', '{"api_key": "[hidden]", "n": 1}'),
        ("GET /v1?key=0123abcd&n=1", "GET /v1?key=[hidden]&n=1"),
        ("hf_abcdefghijklmnopqrstuvwxyz", "[hidden]"),
        ("authorization: Basic YW5uOnBhc3M=", "authorization: Basic [hidden]"),
        ("bos_token: <|im_start|>, max_tokens: 4096", "bos_token: <|im_start|>, max_tokens: 4096"),
        ("the basic idea of a secret", "the basic idea of a secret"),
    ],
)
def test_redact(text, shown):
    assert redact(text) == shown


def test_the_values_of_keys_in_the_environment(monkeypatch):
    monkeypatch.setenv("MY_VENDOR_KEY", "correct horse battery")
    monkeypatch.setenv("SHORT_TOKEN", "none")
    assert redact("you sent correct horse battery; none") == f"you sent {'[hidden]'}; none"
    assert foreign("\x1bcorrect horse battery") == "\\x1b[hidden]"
    assert without_secrets({"a": ["correct horse battery"], "api_key": "x", "n": 3, "k": None}) == {
        "a": ["[hidden]"],
        "api_key": "[hidden]",
        "n": 3,
        "k": None,
    }


def test_markdown_shows_the_text_itself():
    evil = "<img src=x onerror=alert(1)> [a](http://b) `c` **d** | e\n# f\x1b[1m ![g](h) <!--"
    shown = as_markdown(evil)
    assert "<" not in shown and "\n" not in shown and "\x1b" not in shown
    for sign in "[]()`*|#!":
        assert all(shown[at - 1] == "\\" for at, c in enumerate(shown) if c == sign and at)
    assert "://" not in shown
    assert as_markdown("# head") == "\\# head"
    assert as_markdown("1. item") == "1\\. item"
    assert as_markdown("- item") == "\\- item"
    assert as_markdown("&lt;") == "&amp;lt;"
    assert as_markdown("Qwen/Qwen3-8B at 0.6, n = 4") == "Qwen/Qwen3-8B at 0.6, n = 4"


def test_a_fence_holds():
    block = fenced("a\n```\n<b>\n````\n", "yaml")
    assert block == "`````yaml\na\n```\n<b>\n````\n`````"


def test_light():
    code = "import sys, axolotl_distill.show; print({'numpy', 'torch', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
