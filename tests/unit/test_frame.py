"""How a command ends and what it writes where: exit codes, streams, signals, errors."""

import errno
import functools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from axolotl_distill.cli.frame import framed
from axolotl_distill.commands.say import say, warn
from axolotl_distill.errors import StoreError

KEPT = "All rows are kept."


def ran(body, *options, reports=True):
    command = click.command()(framed(KEPT, reports)(body))
    return CliRunner().invoke(command, options)


def raising(error):
    def body():
        raise error

    return body


def test_our_own_error_is_its_message():
    found = ran(raising(StoreError("row 3 of \x1b[31ma.jsonl\nhas no messages; add them")))
    assert found.exit_code == 1 and found.stdout == ""
    assert found.stderr == "error: row 3 of \\x1b[31ma.jsonl\nhas no messages; add them\n"


def _decode():
    b"caf\xe9 au lait".decode("utf-8")


def _parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1nonsensePAR1")
    pq.read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OSError(errno.ENOSPC, "x", "/d/a"), ["/d/a: the disk is full", "Free some space"]),
        (OSError(errno.EDQUOT, "x", "/d/a"), ["/d/a: your quota"]),
        (OSError(errno.EROFS, "x", "/d/a"), ["/d/a:", "read-only"]),
        (PermissionError(errno.EACCES, "x", "/d/a"), ["/d/a: permission denied", "permissions"]),
        (OSError(errno.EMFILE, "x"), ["too many files are open", "ulimit -n"]),
        (FileNotFoundError(errno.ENOENT, "x", "/d/a"), ["/d/a: no such file", "Check the path"]),
        (
            OSError(errno.ENAMETOOLONG, "x", "a" * 9999),
            ["the name is too long", "9,999 characters"],
        ),
        (OSError(errno.EIO, "x", "/d/a", None, "/d/b"), ["/d/a and /d/b: the disk could not"]),
        (OSError("gpt5 is no folder and no model"), ["gpt5 is no folder and no model. Check"]),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), ["reset by peer", "server up"]),
        (MemoryError(), ["the memory is used up", "batch_tokens"]),
        (pa.ArrowInvalid("not a parquet file"), ["Parquet", "not a parquet file", "damaged"]),
        (yaml.YAMLError("bad line"), ["no YAML: bad line"]),
        (jinja2.TemplateError("only user"), ["chat template", "only user", "`chat_template`"]),
        (ModuleNotFoundError("No module named 'gguf'"), ["a package is missing", "'gguf'", "pip"]),
        (json.JSONDecodeError("Expecting value", "{", 1), ["no JSON", "line 1 column 2"]),
        (_decode, ["not utf-8: the byte 0xe9", "caf", "UTF-8"]),
        (_parquet, ["Parquet", "damaged"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_of_the_system_and_of_libraries(tmp_path, cause, said):
    if isinstance(cause, Exception):
        body = raising(cause)
    else:

        def body():
            cause(tmp_path) if cause is _parquet else cause()

    found = ran(body)
    assert found.exit_code == 1 and isinstance(found.exception, SystemExit)
    assert "Traceback" not in found.stderr and "Please report" not in found.stderr
    for words in (*said, KEPT):
        assert words in found.stderr


def test_what_nobody_expected_keeps_its_traceback_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("VENDOR_KEY", "correct horse battery")
    monkeypatch.setattr("tempfile.tempdir", None)
    body = raising(KeyError("http://ann:pass@h \x1b[2J correct horse battery"))
    found = ran(body)
    assert found.exit_code == 1 and "Traceback" not in found.stderr
    assert "fault of axolotl-distill" in found.stderr and KEPT in found.stderr
    (file,) = tmp_path.glob("axolotl-distill-*.log")
    assert str(file) in found.stderr
    for text in (found.stderr, file.read_text(), ran(body, "--debug").stderr):
        assert "KeyError" in text
        assert not [bad for bad in ("ann:pass", "\x1b", "correct horse") if bad in text]
    assert "raise error" in file.read_text() and "raise error" in ran(body, "--debug").stderr
    assert oct(file.stat().st_mode)[-3:] == "600"


def test_stopped_says_what_is_kept():
    assert ran(raising(KeyboardInterrupt())).stderr == f"stopped. {KEPT}\n"
    noted = KeyboardInterrupt()
    noted.add_note("3 of 4 rows are there.")
    found = ran(raising(noted))
    assert found.exit_code == 130 and found.stderr == "stopped. 3 of 4 rows are there.\n"


def test_json_is_alone_on_stdout():
    def body():
        say("for people")
        print("of a library")
        warn("http://a:secret@h is \x07 slow")
        return {"rows": 3, "name": "é \x1b"}

    found = ran(body, "--json")
    assert json.loads(found.stdout) == {"rows": 3, "name": "é \x1b"} and "\x1b" not in found.stdout
    assert found.stderr.splitlines()[:2] == ["for people", "of a library"]
    assert "WARNING: http://h is \\x07 slow" in found.stderr
    plain = ran(body)
    assert plain.stdout == "for people\nof a library\n"
    assert ran(body, "--json", reports=False).exit_code == 2


def test_logs_are_quiet_unless_asked_for():
    log = logging.getLogger("axolotl")
    handler = logging.StreamHandler(sys.stdout)

    def body():
        # As Axolotl, which sets up its logs for the stdout there is.
        log.info("200 lines of config")
        log.warning("a doubt")

    for options, lines in (((), ["a doubt"]), (("--verbose",), ["200 lines of config", "a doubt"])):
        command = click.command()(framed(KEPT)(body))
        runner = CliRunner()
        with runner.isolation():
            handler.setStream(sys.stdout)
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            seen = sys.stderr
            try:
                command.main(list(options), standalone_mode=False)
                seen.flush()
                assert seen.buffer.getvalue().decode().splitlines() == lines
                assert sys.stdout.buffer.getvalue() == b""
            finally:
                log.removeHandler(handler)
    assert "AXOLOTL_LOG_LEVEL" not in os.environ


PROGRAM = """
import os, signal, subprocess, sys, time
import click
from axolotl_distill.cli.frame import framed
from axolotl_distill.commands.say import say

@click.command()
@framed("All rows are kept.")
def command():
    {body}

command()
"""


def started(body, *options, **given):
    code = PROGRAM.format(body=body.replace("\n", "\n    "))
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **given}
    return subprocess.Popen([sys.executable, "-c", code, *options], **given)


@pytest.mark.parametrize("ignored", [False, True], ids=["", "SIGINT ignored"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals(name, ignored):
    """A script's background job ignores SIGINT, and SIGTERM must stop it all the same."""
    if ignored and name == "SIGINT":
        pytest.skip("then Ctrl-C is meant for somebody else")
    body = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if ignored else ""
    number = getattr(signal, name)
    # These tests may be run by what ignores it, as `nohup` does.
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = started(body + "say('ready')\ntime.sleep(60)", preexec_fn=heard)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert said == "stopped. All rows are kept.\n"


def test_a_child_that_was_forked_dies_of_a_signal():
    body = (
        "child = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n"
        "time.sleep(0.2)\nos.kill(child, signal.SIGTERM)\n"
        "say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))"
    )
    out, said = started(body).communicate(timeout=30)
    assert (out, said) == ("-15\n", "")


def test_a_reader_that_leaves():
    """`axolotl-distill inspect STORE | head -1` ends without a word."""
    bodies = {(): "for i in range(20000): say('x' * 50)", ("--json",): "return 'y' * 10**6"}
    for options, body in bodies.items():
        process = started(body, *options)
        process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=30) == 128 + signal.SIGPIPE
        assert said == ""


def test_what_children_and_libraries_print_is_not_in_the_json():
    body = (
        "say('é …')\nsubprocess.run([sys.executable, '-c', 'print(1)'])\nos.write(1, b'2\\n')\n"
        "return {'a': 'é'}"
    )
    out, said = started(body, "--json").communicate(timeout=30)
    assert json.loads(out) == {"a": "é"}
    assert sorted(said.split()) == sorted(["é", "…", "1", "2"])


def test_a_full_disk_under_stdout_and_a_terminal_without_unicode():
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            _, said = started("say('x')", stdout=full).communicate(timeout=30)
        assert "the disk is full" in said and "Traceback" not in said
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    process = started("say('é…')", env=env, encoding="latin-1")
    assert process.communicate(timeout=30) == ("é\\u2026\n", "") and process.returncode == 0
