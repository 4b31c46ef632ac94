"""Runs Python code in a limited process. NO SECURITY BOUNDARY: limits, not walls.

It keeps code that hangs, forks, floods or eats memory from taking its caller down, and leaves no
process behind. It does not keep code that means harm from reading your files or using the network;
for that, run the whole filter in a container or on a throw-away machine.

    caller  ->  supervisor (this file, run as a script)  ->  the code

On Linux the supervisor is a subreaper: whatever the code forks, daemons too, becomes the
supervisor's child when its own parent dies, and is killed. Started by root, the code runs under a
user id of its own, so that it can neither kill its supervisor nor fork without limit. Without root
it can kill its supervisor; what it left is then found by a mark in its environment. On macOS there
are no subreapers: the code's process group and the marked processes are killed.
"""

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = "AXOLOTL_DISTILL_SANDBOX"
GRACE = 10.0  # seconds that the supervisor may take to start and to clear up
CUT = "\n[…]\n"  # stands for the middle of a stream that was too long
LOOK = 0.1  # seconds between two looks at the memory and the files of all processes together


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
    Linux only), "lost" (it killed its supervisor).
    """

    status: str
    stdout: str = ""
    stderr: str = ""


def run_python(code: str, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """`code` in a Python of its own (`-I`), in an empty folder, with a minimal environment.

    Returns when the code and everything that it started are dead.
    """
    mark = secrets.token_hex(16)
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    try:
        (folder / "work").mkdir()
        (folder / "work" / "main.py").write_text(code, errors="surrogatepass")
        (folder / "stdin").write_text(stdin, errors="surrogatepass")
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        order = {"folder": str(folder), "mark": mark, "python": sys.executable, **asdict(limits)}
        status = _await(supervisor, json.dumps(order).encode() + b"\n", limits.seconds + GRACE)
        if status == "lost" or sys.platform != "linux":
            _kill_marked(mark)
        stdout, stderr = (_ends(folder / name, limits.output) for name in ("stdout", "stderr"))
        return Outcome(status, stdout, stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _kill_marked(mark: str) -> None:
    """Best effort: the processes that still have the mark that the code was started with."""
    # Until they are stopped they leave this process little of the CPU.
    deadline = time.monotonic() + 3 * GRACE
    while _stop_and_kill(lambda: _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _marked(mark: str) -> set[int]:
    import psutil

    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def _ends(path: Path, limit: int) -> str:
    """The end matters as much as the start: an error's last line, the mark that a test ended."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) > limit:
        data = data[: limit // 2] + CUT.encode() + data[len(data) - limit // 2 :]
    return data.decode(errors="replace")


# --- the supervisor: nothing below is run by the caller, and it uses the standard library only ---


def supervise(order: dict[str, Any]) -> str:
    """Runs the code and kills all that is left of it. Returns the status of an Outcome."""
    if sys.platform == "linux":
        _libc().prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    # The caller's folder is closed to others; the code gets to its own through the working folder.
    os.chmod(order["folder"], 0o711)
    child = os.fork()
    if child == 0:
        _become_the_code(order)
    status = _wait(child, order)
    _kill_all(child)
    if status == "abandoned":
        shutil.rmtree(order["folder"], ignore_errors=True)
    return status


def _wait(child: int, order: dict[str, Any]) -> str:
    deadline, look = time.monotonic() + order["seconds"], time.monotonic() + LOOK
    while True:
        # The wait between two looks; readable means that the caller is gone.
        gone = select.select([0], [], [], 0.005)[0]
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid and os.WIFSIGNALED(status):
            return "killed"
        if pid:
            return "ok" if os.WEXITSTATUS(status) == 0 else "failed"
        if gone:
            return "abandoned"
        now = time.monotonic()
        if now > deadline:
            return "timed out"
        if now > look and sys.platform == "linux":
            if sum(map(_memory, _descendants())) > order["memory_mb"] << 20:
                return "out of memory"
            if _is_larger(f"{order['folder']}/work", order["folder_mb"] << 20):
                return "out of disk"
            # Less often where it takes long: a machine may have thousands of processes.
            look = now + max(LOOK, 10 * (time.monotonic() - now))


def _memory(pid: int) -> int:
    """Bytes; of the pages that it shares with its forks a fair part, where the system tells."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as sums:
        return next((int(line.split()[1]) << 10 for line in sums if line.startswith("Pss:")), 0)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _is_larger(folder: str, limit: int) -> bool:
    """Whether it takes more bytes of disk. An empty file takes some too."""
    size, todo = 0, [folder]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # it may be gone again
                    size += 4096 + 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                if size > limit:
                    return True
    return False


def _kill_all(child: int) -> None:
    """Until no child is left, adopted ones among them."""
    while True:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        _stop_and_kill(_descendants)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _stop_and_kill(find: Callable[[], set[int]]) -> set[int]:
    """Kills what `find` finds, and returns it.

    Processes are stopped before they are killed: a stopped one cannot fork, and holds its place in
    the number that there may be.
    """
    stopped: set[int] = set()
    while new := find() - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    _signal(stopped, signal.SIGKILL)
    return stopped


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _descendants() -> set[int]:
    """Of this process; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(process.name))
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        new = children.pop(todo.pop(), [])
        found.update(new)
        todo += new
    return found


def _become_the_code(order: dict[str, Any]) -> None:
    """Never returns."""
    try:
        os.setsid()
        # Where memory runs out before we look, the system is to kill the code, and not the filter.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        folder = order["folder"]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(f"{folder}/{name}", flags, 0o600), number)
        os.chdir(f"{folder}/work")
        processes = order["processes"]
        if os.geteuid() == 0:
            # A number that nobody has: a limit on processes counts all of a user's.
            _become_user(61_184 + os.getpid() % 4_096)
        else:
            processes += _processes_of(os.getuid())
        _limit(order, processes)
        if sys.platform == "linux":
            _libc().prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without its supervisor
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            **dict.fromkeys(("HOME", "TMPDIR"), os.getcwd()),
            "USER": "sandbox",
            "LANG": "C.UTF-8",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
            MARK: order["mark"],
        }
        python = order["python"]
        os.execve(python, [python, "-I", "-B", "-X", "utf8", "main.py"], environment)
    except BaseException as error:
        os.write(2, f"cannot start the code: {error}\n".encode())
    finally:
        os._exit(127)


def _limit(order: dict[str, Any], processes: int) -> None:
    import resource

    seconds = int(order["seconds"]) + 1
    for name, value in (
        ("RLIMIT_AS", order["memory_mb"] << 20),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", order["file_mb"] << 20),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_NOFILE", 128),
        ("RLIMIT_CORE", 0),
    ):
        # A system may not know a limit, or already have a lower one.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _processes_of(user: int) -> int:
    """How many processes and threads a user has; 0 where there is no /proc."""
    count = 0
    for name in os.listdir("/proc") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _become_user(user: int) -> None:
    """Gives up root, except for reading: Python may be installed in root's home."""
    import ctypes

    read = 1 << 2  # CAP_DAC_READ_SEARCH
    with contextlib.suppress(OSError):  # a root without the right to do it is as good as no root
        os.chown(".", user, user)
        if sys.platform == "linux":
            _libc().prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        if sys.platform == "linux":
            header = (ctypes.c_uint32 * 2)(0x20080522, 0)
            sets = (ctypes.c_uint32 * 6)(read, read, read, 0, 0, 0)
            if _libc().capset(header, sets) == 0:
                _libc().prctl(47, 2, 2, 0, 0)  # PR_CAP_AMBIENT_RAISE
            else:
                _libc().capset(header, (ctypes.c_uint32 * 6)())


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    print(supervise(json.loads(sys.stdin.readline())), flush=True)
