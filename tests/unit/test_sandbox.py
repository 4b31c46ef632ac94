"""The sandbox against hostile code: a verdict in time, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from axolotl_distill import sandbox
from axolotl_distill.sandbox import (
    CUT,
    MARK,
    Bubblewrap,
    Limits,
    Processes,
    missing_walls,
)

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {act}
        time.sleep(1000)
    os._exit(0)
os.wait()
print("started")
"""
FORK_BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
UNMARKED = "os.execve(sys.executable, [sys.executable, '-c', 'import time; time.sleep(1000)'], {})"
HOSTILE = {
    "infinite loop": ("while True: pass", "timed out"),
    "sleep that ignores signals": (
        "import signal, time\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(1000)",
        "timed out",
    ),
    "endless output": ("while True: print('x' * 100_000)", "failed"),
    "memory": ("x = bytearray(1 << 40)", "failed"),
    "memory in steps": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "failed"),
    "fork bomb": (FORK_BOMB, "timed out"),
    "daemon": (DAEMON.format(act="pass"), "ok"),
    "daemon without the mark": (DAEMON.format(act=UNMARKED), "ok"),
    "daemon that is a fork bomb": (DAEMON.format(act="while True: os.fork()"), "ok"),
    "threads": (
        "import threading, time\n"
        "for _ in range(1000): threading.Thread(target=time.sleep, args=(1000,)).start()",
        "timed out",
    ),
    "its own group": ("import os; os.killpg(0, 9)", "killed"),
    "core and crash": ("import os; os.abort()", "killed"),
}


BOX = {False: "Processes()", True: "Bubblewrap()"}
LOAD = "import sys; sys.path += [sys.argv[1]]\nfrom axolotl_distill.sandbox import *\n"
WALLS = pytest.param(
    True, id="walls", marks=pytest.mark.skipif(bool(missing_walls()), reason=missing_walls())
)


@pytest.fixture(params=[pytest.param(False, id="bare"), WALLS])
def walls(request):
    return request.param


@pytest.fixture
def run_python(walls):
    return (Bubblewrap if walls else Processes)().run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where all that these tests start has its working folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def left_behind():
    """Processes with the mark, and those under users that the sandbox makes up, of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = MARK in process.environ() or 61_184 <= process.uids().real < 65_280
            dead = process.status() == psutil.STATUS_ZOMBIE
            if ours and not dead and process.cwd().startswith(tempfile.gettempdir()):
                found.append(process)
        except psutil.Error:
            pass  # it may be gone by now
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_gets_its_verdict_and_leaves_nothing(name, run_python):
    code, status = HOSTILE[name]
    started = time.monotonic()
    seconds = 1.5 if status == "timed out" else 8.0
    outcome = run_python(code, limits=Limits(seconds=seconds, memory_mb=256))
    assert outcome.status == status, outcome
    assert time.monotonic() - started < 12
    assert left_behind() == []


def test_the_supervisor_cannot_be_killed_by_root_s_code_and_its_loss_is_seen_otherwise():
    code = "import os; os.kill(os.getppid(), 9); import time; time.sleep(1000)"
    outcome = Processes().run(code)
    assert outcome.status == ("failed" if os.geteuid() == 0 else "lost")
    assert left_behind() == []


def test_output_and_input_and_exit_codes(run_python):
    outcome = run_python("import sys; print(input()[::-1]); print('é', file=sys.stderr)", "abç\n")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "çba\n", "é\n")
    assert run_python("raise SystemExit(3)").status == "failed"
    assert "ZeroDivisionError" in run_python("1 / 0").stderr


def test_output_is_cut_and_files_are_small(run_python):
    limits = Limits(output=1000, file_mb=1)
    outcome = run_python("print('a' * 5000 + 'b' * 5000)", limits=limits)
    assert outcome.stdout == "a" * 500 + CUT + "b" * 499 + "\n"
    assert run_python("print('x' * 999)", limits=limits).stdout == "x" * 999 + "\n"
    outcome = run_python("open('big', 'wb').write(bytes(2 << 20))", limits=limits)
    assert outcome.status == "failed" and "File too large" in outcome.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("code", "status"),
    [
        # Each of four is far within the limit, together they are not.
        ("[os.fork() for _ in range(2)]; x = b'x' * (40 << 20); time.sleep(60)", "out of memory"),
        # What forks share is there once.
        ("x = b'x' * (60 << 20); [os.fork() for _ in range(2)]; time.sleep(1)", "ok"),
        (
            "for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))\ntime.sleep(60)",
            "out of disk",
        ),
        (
            "for i in range(99):\n    os.mkdir('d'); os.chdir('d')\n"
            "    for i in range(99): open(str(i), 'w')\ntime.sleep(60)",
            "out of disk",
        ),
    ],
)
def test_memory_and_files_are_limited_in_sum(code, status, run_python):
    limits = Limits(seconds=8, memory_mb=128, folder_mb=4)
    started = time.monotonic()
    assert run_python("import os, time\n" + code, limits=limits).status == status
    assert time.monotonic() - started < 6
    assert left_behind() == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_system_kills_the_code_first(run_python):
    assert run_python("print(open('/proc/self/oom_score_adj').read())").stdout.strip() == "1000"


def test_no_secrets_no_caller_s_folder_nothing_kept(monkeypatch, tmp_path, run_python):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.chdir(tmp_path)
    outcome = run_python(
        "import os, json\nopen('kept', 'w').write('x')\n"
        "print(json.dumps([os.getcwd(), dict(os.environ), sorted(os.listdir('.'))]))"
    )
    folder, environment, files = json.loads(outcome.stdout)
    assert "sk-secret" not in json.dumps(environment)
    assert files == ["kept", "main.py"]
    assert not Path(folder).exists() and folder != str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_started_by_root_the_code_is_nobody(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("not root")
    target = tmp_path / "target"
    tmp_path.chmod(0o755)
    code = f"import os; print(os.getuid()); open({str(target)!r}, 'w')"
    outcome = Processes().run(code)
    assert int(outcome.stdout) >= 61_184
    assert "PermissionError" in outcome.stderr and not target.exists()


def test_two_at_once_do_not_share_their_number_of_processes(run_python, walls):
    """The bomb's forks must not be counted against its neighbour's."""
    if os.geteuid() != 0:
        pytest.skip("only root can give each a user of its own")
    fork = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(1); os._exit(0)"
    script = (
        f"from axolotl_distill.sandbox import *; {BOX[walls]}.run({FORK_BOMB!r}, '', Limits(3))"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as bomb:
        while not left_behind():
            time.sleep(0.02)
        assert run_python(fork, limits=Limits(seconds=8)).status == "ok"
        assert bomb.poll() is None
    assert left_behind() == []


def test_a_killed_caller_leaves_nothing(tmp_path, walls):
    script = (
        "from axolotl_distill.sandbox import *\n"
        f"{BOX[walls]}.run({DAEMON.format(act='pass')!r} + 'time.sleep(1000)', '', Limits(600))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as caller:
        while len(left_behind()) < 2:
            time.sleep(0.02)
        os.kill(caller.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (left_behind() or list(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_behind() == [] and list(tmp_path.iterdir()) == []


def without_root(script, folder, *, walls, **environment):
    """Runs a script that has the sandbox's names as an ordinary user, who may read everything; for
    bubblewrap by a Python that everybody may read.
    """
    folder.chmod(0o777)
    for parent in folder.parents[:2]:
        parent.chmod(0o755)
    python = "/usr/bin/python3" if walls else sys.executable
    if not Path(python).exists():
        pytest.skip(f"no {python}")
    reads_all = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return subprocess.run(
        [
            *("setpriv", "--reuid=60123", "--regid=60123", "--clear-groups"),
            *(() if walls else reads_all),
            *(python, "-c", LOAD + script, str(Path(sandbox.__file__).parents[2])),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(folder), **environment},
    )


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="root, to become somebody else"
)
@pytest.mark.parametrize("kills_supervisor", [False, True])
def test_the_same_without_root_and_walls(tmp_path, kills_supervisor):
    """As an ordinary user: a bomb and a daemon end all the same, and a killed supervisor's too."""
    act = "os.kill(os.getppid(), 9)" if kills_supervisor else "pass"
    codes = [DAEMON.format(act="pass") + act, FORK_BOMB + (f"\n    {act}" if act != "pass" else "")]
    done = without_root(
        f"for code in {codes!r}: print(Processes().run(code, '', Limits(2, 256)).status)",
        tmp_path,
        walls=False,
    )
    first, second = done.stdout.split("\n")[:2]
    assert first == ("lost" if kills_supervisor else "ok"), done.stderr
    # Every fork kills its parent: the supervisor's turn may come after that of the code itself.
    assert second in (("lost", "killed") if kills_supervisor else ("timed out",)), done.stderr
    # Without the supervisor nobody waits for those that were killed to be dead.
    deadline = time.monotonic() + (10 if kills_supervisor else 0)
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_behind() == []


DEEP = """
import os
for i in range({depth}):
    os.mkdir({name!r}); os.chdir({name!r}); open("f", "w")
    if i % 3 == 0: os.chmod(".", 0o300)
"""


@pytest.mark.parametrize(
    ("depth", "name"),
    [
        (10, "d"),
        (40, "d" * 200),  # a path longer than paths may be
        pytest.param(3000, "d", marks=pytest.mark.slow),  # deeper than calls and open files may be
    ],
)
def test_folders_however_deep_and_closed_are_removed(tmp_path, caplog, depth, name, run_python):
    code = DEEP.format(depth=depth, name=name)
    status = run_python(code, limits=Limits(seconds=60, folder_mb=1024)).status
    assert status == "ok" or (depth > 10 and status == "out of disk")
    assert list(tmp_path.iterdir()) == [] and caplog.text == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only then the code has a user of its own")
def test_files_and_shared_memory_elsewhere_do_not_stay(run_python):
    name = f"left-{os.getpid()}"
    code = (
        "import ctypes, os\n"
        f"for folder in ('/tmp', '/var/tmp', '/dev/shm'): os.makedirs(folder + '/{name}/d')\n"
        "libc = ctypes.CDLL(None)\n"
        f"key = {os.getpid()}\n"
        "made = [libc.shmget(key, 4096, 0o1666), libc.semget(key, 1, 0o1666)]\n"
        "print([number >= 0 for number in [*made, libc.msgget(key, 0o1666)]])"
    )
    outcome = run_python(code)
    assert (outcome.status, outcome.stdout) == ("ok", "[True, True, True]\n"), outcome
    assert not [f for f in ("/tmp", "/var/tmp", "/dev/shm") if Path(f, name).exists()]
    for kind in ("shm", "sem", "msg"):
        keys = [line.split()[0] for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines()]
        assert str(os.getpid()) not in keys


SPY = """
import os
for name in os.listdir("/proc"):
    for what in ("environ", "cmdline"):
        try: print(open(f"/proc/{name}/{what}").read())
        except OSError: pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_caller_s_environment_cannot_be_read(run_python, monkeypatch):
    secret = f"sk-{os.getpid()}-secret"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with subprocess.Popen(["sleep", "30"]) as other:
        outcome = run_python(SPY)
        other.kill()
    assert outcome.status == "ok" and secret not in outcome.stdout


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="root, to become somebody else"
)
def test_without_root_neither(tmp_path, walls):
    """The caller, who shares the user with the code, has closed its memory (`hide_memory`)."""
    script = f"hide_memory(); print({BOX[walls]}.run({SPY!r}))"
    done = without_root(script, tmp_path, walls=walls, OPENAI_API_KEY="sk-secret")
    assert "status='ok'" in done.stdout and "main.py" in done.stdout, done
    assert "sk-secret" not in done.stdout


@pytest.mark.skipif(bool(missing_walls()), reason=missing_walls())
def test_behind_walls_there_is_no_network_no_other_process_and_no_file():
    code = (
        "import os, socket\n"
        "print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()) == [1, os.getpid()])\n"
        f"print(os.path.exists({__file__!r}), os.path.exists(os.path.expanduser('~root/.ssh')))\n"
        "print([name for _, name in socket.if_nameindex()])\n"
        "for path in ('/x', '/dev/x', '/usr/x', '/proc/sys/kernel/core_pattern'):\n"
        "    try: open(path, 'w'); print('wrote', path)\n"
        "    except OSError: pass\n"
        "import numpy; print(numpy.ones(2).sum())\n"
    )
    outcome = Bubblewrap().run(code)
    assert outcome.stdout == "True\nFalse False\n['lo']\n2.0\n", outcome


def test_a_bubblewrap_that_cannot_run_is_said(tmp_path):
    """As in containers: it is there, and may not make namespaces."""
    (tmp_path / "bwrap").write_text(
        "#!/bin/sh\necho 'No permissions to create namespace' >&2\nexit 1"
    )
    (tmp_path / "bwrap").chmod(0o755)
    script = LOAD + "print(missing_walls()); print(best_here().run('print(1)').stdout)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(sandbox.__file__).parents[2])],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    said, ran = done.stdout.split("\n")[:2]
    assert "cannot run here: No permissions to create namespace" in said and ran == "1", done
