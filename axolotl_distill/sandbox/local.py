"""Sandboxes of this machine: a folder, a supervisor, and what came of the code."""

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from .base import CUT, GRACE, NORMAL, Limits, Outcome, Sandbox, Status
from .processes import kill_marked
from .remove import remove

# Last on the path: what lies beside this package must not stand before the standard library.
SUPERVISE = (
    "import sys; sys.path += sys.argv[1:]; "
    "from axolotl_distill.sandbox.supervisor import main; main()"
)
# The code's parent: what is in its environment, the code may come to read.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
READY = "print('ready')"


class Processes:
    """Limits on time, memory, processes and files, and no walls.

    why  there are none, for people
    """

    _bwrap: str | None = None

    def __init__(self, why: str = "bubblewrap is not asked for"):
        self._why = why

    def run(self, code: str, stdin: str = "", limits: Limits = NORMAL) -> Outcome:
        mark = secrets.token_hex(16)
        folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
        try:
            (folder / "work").mkdir()
            (folder / "work" / "main.py").write_text(code, errors="surrogatepass")
            (folder / "stdin").write_text(stdin, errors="surrogatepass")
            order = {
                **{"folder": str(folder), "mark": mark, "python": sys.executable},
                **{"bwrap": self._bwrap, "path": sys.path},
                **asdict(limits),
            }
            status = _supervised(json.dumps(order).encode() + b"\n", limits.seconds + GRACE)
            if status == "lost" or sys.platform != "linux":
                kill_marked(mark, 3 * GRACE)
            stdout, stderr = (_ends(folder / name, limits.output) for name in ("stdout", "stderr"))
            return Outcome(status, stdout, stderr)
        finally:
            remove(folder)

    def caveat(self) -> str:
        reads = (
            "one of its own"
            if os.geteuid() == 0
            else "yours: also the keys in the environment of processes other than this one"
        )
        return (
            "within limits on time, memory, processes and files that are NO security boundary, for "
            f"{self._why}. It can use the network, read what its user may read ({reads}), and "
            "leave files and shared memory behind. Install bubblewrap where namespaces are "
            "allowed, or run this in a container or on a throw-away machine."
        )


class Bubblewrap(Processes):
    """The same limits, behind walls: no other process, file, network or memory is there."""

    def __init__(self) -> None:
        super().__init__()
        self._bwrap = shutil.which("bwrap")
        assert self._bwrap is not None

    def caveat(self) -> str:
        return (
            "in bubblewrap: without network, other processes and your files. The kernel is "
            "shared, so this is NO security boundary like a throw-away machine."
        )


@functools.cache
def best_here() -> Sandbox:
    """Bubblewrap where it works."""
    missing = missing_walls()
    return Processes(missing) if missing else Bubblewrap()


@functools.cache
def missing_walls() -> str:
    """Why bubblewrap cannot be used, in a few words; nothing where it works."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    outcome = Bubblewrap().run(READY)
    if (outcome.status, outcome.stdout) == ("ok", "ready\n"):
        return ""
    # In a container it may be there and not be allowed to make namespaces.
    said = outcome.stderr.strip()[-300:] or outcome.status
    return f"bubblewrap (bwrap) is installed and cannot run here: {said}"


def _supervised(order: bytes, seconds: float) -> Status:
    """What the supervisor reports. Its standard input stays open: its end means "clear up"."""
    supervisor = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SUPERVISE, str(Path(__file__).parents[2])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=ENVIRONMENT,
    )
    assert supervisor.stdin is not None and supervisor.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            supervisor.stdin.write(order)
            supervisor.stdin.flush()
        report = b""
        if select.select([supervisor.stdout], [], [], seconds)[0]:
            report = supervisor.stdout.readline()
        said = report.decode().strip()
        return next((status for status in get_args(Status) if status == said), "lost")
    finally:
        with contextlib.suppress(BrokenPipeError):
            supervisor.stdin.close()
        try:
            supervisor.wait(GRACE)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        supervisor.stdout.close()


def _ends(path: Path, limit: int) -> str:
    """The end matters as much as the start: an error's last line, the mark that a test ended."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) > limit:
        data = data[: limit // 2] + CUT.encode() + data[len(data) - limit // 2 :]
    return data.decode(errors="replace")
