"""The caller's side: makes a folder, starts the supervisor, reads what came of it."""

import contextlib
import functools
import json
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .processes import kill_marked
from .remove import remove

GRACE = 10.0  # seconds that the supervisor may take to start and to clear up
CUT = "\n[…]\n"  # stands for the middle of a stream that was too long
# Last on the path: what lies beside this package must not stand before the standard library.
SUPERVISE = (
    "import sys; sys.path += sys.argv[1:]; "
    "from axolotl_distill.sandbox.supervisor import main; main()"
)
# The code's parent: what is in its environment, the code may come to read.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Limits:
    """seconds: on the clock. memory_mb: address space a process, and memory of all together, MiB.
    processes: with threads, at once. file_mb: of each file it writes, MiB, output too; folder_mb:
    of all. output: bytes kept of each stream, half its start and half its end, `CUT` in between.
    """

    seconds: float = 10.0
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 16
    folder_mb: int = 128
    output: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """status: "ok" (exit code 0), "failed" (another one), "timed out", "killed" (by a signal, its
    own or for a limit), "out of memory" and "out of disk" (all processes or files together; on
    Linux only; folders whose path is too long to look into count as too much), "lost" (it killed
    its supervisor).
    """

    status: str
    stdout: str = ""
    stderr: str = ""


def run_python(
    code: str, stdin: str = "", limits: Limits = Limits(), *, walls: bool | None = None
) -> Outcome:
    """`code` in a Python of its own (`-I`), in an empty folder, with a minimal environment.

    walls: with bubblewrap, or without; default: with it where it works.
    Returns when the code and everything that it started are dead.
    """
    if walls is None:
        walls = not missing_walls()
    mark = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    try:
        (folder / "work").mkdir()
        (folder / "work" / "main.py").write_text(code, errors="surrogatepass")
        (folder / "stdin").write_text(stdin, errors="surrogatepass")
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SUPERVISE, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=ENVIRONMENT,
        )
        order = {"folder": str(folder), "mark": mark, "python": sys.executable, **asdict(limits)}
        order |= {"bwrap": shutil.which("bwrap") if walls else None, "path": sys.path}
        status = _await(supervisor, json.dumps(order).encode() + b"\n", limits.seconds + GRACE)
        if status == "lost" or sys.platform != "linux":
            kill_marked(mark, 3 * GRACE)
        stdout, stderr = (_ends(folder / name, limits.output) for name in ("stdout", "stderr"))
        return Outcome(status, stdout, stderr)
    finally:
        remove(folder)


@functools.cache
def missing_walls() -> str:
    """Why bubblewrap is not used, in a few words; nothing where it works."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return "bubblewrap (bwrap) is not installed"
    outcome = run_python("print('ready')", walls=True)
    if (outcome.status, outcome.stdout) == ("ok", "ready\n"):
        return ""
    # In a container it may be there and not be allowed to make namespaces.
    said = outcome.stderr.strip()[-300:] or outcome.status
    return f"bubblewrap (bwrap) is installed and cannot run here: {said}"


def _await(supervisor: subprocess.Popen[bytes], order: bytes, seconds: float) -> str:
    """What the supervisor reports. Its standard input stays open: its end means "clear up"."""
    try:
        with contextlib.suppress(BrokenPipeError):
            supervisor.stdin.write(order)
            supervisor.stdin.flush()
        report = b""
        if select.select([supervisor.stdout], [], [], seconds)[0]:
            report = supervisor.stdout.readline()
        return report.decode().strip() or "lost"
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
