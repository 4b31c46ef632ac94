"""Runs a command in forks of this process, which has imported everything already, and ends them.

A life is one run of the command. It ends by itself, or its death comes

    at a moment  some seconds after it began
    at a call    before the n-th call that changes a file below its folder: fsync, rename, remove,
                 mkdir, rmdir, or open to write. Calls of C libraries (SQLite, Arrow) are not seen

A kill is SIGKILL: what the kernel has taken stays, as after any kill and unlike after a power cut.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil
from support.faulty_server import FaultyServer, Handler
from support.forks import in_a_fork

PATHS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Job(Protocol):
    """A command, and what must hold of its folder. `run` is called in a fork, the rest here."""

    name: str

    def begin(self, folder: Path) -> None:
        """Whatever must be there before the first run; `folder` is new."""
        ...

    def run(self, folder: Path) -> None:
        """The command; may raise SystemExit."""
        ...

    def kept(self, folder: Path) -> Mapping[Any, Any]:
        """All that a run is to keep, read and checked, by name."""
        ...

    def result(self, folder: Path) -> Any:
        """What a run that ended leaves, without what differs from one folder to another."""
        ...


class Death(NamedTuple):
    """Which signal comes, and when; see above."""

    number: int
    seconds: float = 0.0
    call: int | None = None


@dataclass(frozen=True)
class Life:
    """code: as of `waitpid`, negative for a signal; calls: by name, where it ended by itself;
    orphans: its child processes that outlived it by more than ORPHAN_SECONDS."""

    code: int
    seconds: float
    calls: Counter[str]
    orphans: list[str]
    log: str


@dataclass
class Tally:
    """What was tried. `ends`: runs that went on to the end and were compared; `at`: kills by what
    they came at."""

    kills: int = 0
    stops: int = 0
    ends: int = 0
    at: Counter[str] = field(default_factory=Counter)
    orphans: list[str] = field(default_factory=list)
    seconds: float = 0.0


ORPHAN_SECONDS = 5.0


def live(job: Job, folder: Path, death: Death | None = None) -> Life:
    """One run of the command in `folder`."""
    log = folder.with_suffix(".log")
    reader, told = os.pipe()
    sys.stdout.flush()
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.close(reader)
        _live(job, folder, log, death, told)
    os.close(told)
    if death and death.call is None:
        time.sleep(death.seconds)
        os.kill(child, death.number)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    with os.fdopen(reader, "rb") as said:
        calls = Counter(json.loads(said.read() or "{}"))
    text = log.read_text(errors="replace") if log.exists() else ""
    return Life(os.waitstatus_to_exitcode(status), seconds, calls, _orphans(child), text)


def _live(job: Job, folder: Path, log: Path, death: Death | None, told: int) -> None:
    code: Any = 0
    calls: Counter[str] = Counter()
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = os.fdopen(out, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        in_a_fork()
        calls = _watched(folder, death.call if death else None)
        job.run(folder)
    except SystemExit as stop:
        code = stop.code or 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # before the command could hear it
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        with os.fdopen(told, "w") as said:
            json.dump(calls, said)
        os._exit(code)


def _watched(folder: Path, end: int | None) -> Counter[str]:
    """Counts calls, of this process and not of its children, and ends it before number `end`."""
    calls: Counter[str] = Counter()
    owner, below, fsync = os.getpid(), f"{folder}/", os.fsync

    def count(name: str, path: Any) -> None:
        if os.getpid() != owner or below not in os.fsdecode(path):
            return
        if calls.total() == end:
            folder.with_suffix(".at").write_text(name)
            os.kill(owner, signal.SIGKILL)
        calls[name] += 1

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in PATHS and not isinstance(args[0], int):
            inside = event in ("os.remove", "os.rmdir", "os.mkdir") and args[-1] != -1
            count(event.removeprefix("os."), _name(args[-1]) if inside else args[0])
        elif event == "open" and not isinstance(args[0], int) and args[2] & WRITES:
            count("open", args[0] or "")

    def counted(file: Any) -> None:
        count("fsync", _name(file if isinstance(file, int) else file.fileno()))
        fsync(file)

    sys.addaudithook(hook)
    os.fsync = counted
    return calls


def _name(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _orphans(session: int) -> list[str]:
    """Processes of a dead leader's session; they are ended."""
    until = time.monotonic() + ORPHAN_SECONDS
    while left := [process for process in psutil.process_iter() if _session(process) == session]:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    said = []
    for process in left:
        try:
            said.append(" ".join(process.cmdline())[:200])
            process.kill()
        except psutil.Error:
            pass
    return said


def _session(process: psutil.Process) -> int:
    try:
        return -1 if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (OSError, psutil.Error):
        return -1


def kill_again_and_again(job: Job, folder: Path, kills: int, seed: int) -> Tally:
    """Kills the command until `kills` of it were killed, and runs on to the end each time it gets
    there. One run in six is told to stop instead, by SIGTERM or SIGINT.

    After every death all that was kept before it is there, readable and as it was; in the end the
    result is that of a run that nothing disturbed.
    """
    rng, tally, start = random.Random(seed), Tally(), time.monotonic()
    folder.mkdir()
    first = folder / "imports"
    job.begin(first)
    with suppress(SystemExit):
        job.run(first)
    first = folder / "undisturbed"
    job.begin(first)
    life = live(job, first)
    assert life.code == 0, life.log
    whole, usual, calls = job.result(first), life.seconds, life.calls.total()
    assert calls
    number = 0
    while tally.kills < kills:
        number += 1
        path = folder / f"number-{number}"
        job.begin(path)
        kept: dict[Any, Any] = dict(job.kept(path))
        while True:
            death = _next(rng, usual, calls) if tally.kills < kills else None
            life = live(job, path, death)
            _count(tally, life, death, path)
            tally.seconds = time.monotonic() - start
            (folder / "tally.json").write_text(json.dumps(vars(tally)))
            now = dict(job.kept(path))
            lost = [name for name, value in kept.items() if now.get(name) != value]
            assert not lost, f"seed {seed}, {path.name}: {len(lost)} are lost: {lost[:3]}"
            kept = now
            if life.code == 0:
                break
        assert job.result(path) == whole, f"seed {seed}, {path.name}: another result"
        tally.ends += 1
        shutil.rmtree(path)
    return tally


def _next(rng: random.Random, usual: float, calls: int) -> Death:
    moment = rng.uniform(0.0, usual)
    if rng.random() < 1 / 6:
        return Death(rng.choice([signal.SIGTERM, signal.SIGINT]), moment)
    if rng.random() < 0.5:
        return Death(signal.SIGKILL, moment)
    return Death(signal.SIGKILL, call=rng.randrange(calls))


def _count(tally: Tally, life: Life, death: Death | None, path: Path) -> None:
    tally.orphans += life.orphans
    at = path.with_suffix(".at")
    if life.code == 0:
        return
    assert death is not None, life.log
    if death.number == signal.SIGKILL:
        assert life.code == -death.number, f"{life.code}\n{life.log}"
        tally.kills += 1
        tally.at["a moment" if death.call is None else f"{at.read_text()}"] += 1
    else:
        assert life.code in (-death.number, 128 + death.number), f"{life.code}\n{life.log}"
        assert "Traceback" not in life.log, life.log
        tally.stops += 1


@contextmanager
def served(handlers: Mapping[str, Handler], log: Path) -> Iterator[str]:
    """The root of a FaultyServer in a process of its own, so that nothing here has threads when it
    forks. `log` gets the path and body of every answer, one JSON line each, before it is sent."""
    context = get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(handlers, log, there), daemon=True)
    process.start()
    # Else nothing would tell that it ended.
    there.close()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def _serve(handlers: Mapping[str, Handler], log: Path, pipe: Any) -> None:
    def logged(path: str, handler: Handler) -> Handler:
        def answer(body: dict[str, Any]) -> Any:
            found = handler(body)
            os.write(file, json.dumps([path, body]).encode() + b"\n")
            return found

        return answer

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    spied: dict[str, Callable[..., Any]] = {p: logged(p, h) for p, h in handlers.items()}
    with FaultyServer(spied) as server:
        pipe.send(server.root)
        threading.Event().wait()
