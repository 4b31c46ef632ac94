"""Forks of a test process, and the process that runs of Axolotl are forked from, one of each test
process (support/fleet.py)."""

import atexit
import faulthandler
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

LONGEST = 300.0
"""Seconds of a fork that tests wait for."""


def in_a_fork(seconds: float = LONGEST) -> None:
    """First in a fork that may be killed, or wait for one that was: no other process has to wait
    for it then, and none waits for ever.

    tqdm's own lock is one for all forks: who is killed while holding it would stop them all, and
    the process that they come from. What takes longer than `seconds` shows its stacks and ends.
    """
    tqdm.set_lock(threading.RLock())
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def apart(check: Callable[[], None], seconds: float = LONGEST) -> None:
    """Run `check` in a fork, which ends without freeing anything. Raises AssertionError where it
    raised, or took longer than `seconds`; what it said is on stderr.

    For process groups of gloo: where the last owner of one is freed by Python, as the wrapper of
    DDP is, torch 2.13 joins the group's thread with the interpreter's lock held, and that thread
    may be waiting for the lock. Then a test waits for ever, now and then, and no signal ends it.
    """

    def inside() -> None:
        in_a_fork(seconds)
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    child = multiprocessing.get_context("fork").Process(target=inside)
    child.start()
    child.join()
    assert child.exitcode == 0, f"it ended with {child.exitcode}: see what it said on stderr"


class Forks:
    """Started when the first run is asked for, and ended with this process."""

    def __init__(self, env: Mapping[str, str]):
        # Python looks for modules where it starts: in none of a test, which may be removed.
        self.parent = subprocess.Popen(
            [sys.executable, "-m", "support.fleet"],
            env=env,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.end)

    def run(
        self,
        module: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        out: Path,
        err: Path,
        seconds: float = 420,
        processes: int = 1,
        as_gpus: bool = False,
    ) -> int:
        """The exit code of `python -m MODULE ARGS…` in `folder`, 124 where it took longer than
        `seconds`; what it says is added to `out` and `err`."""
        job = {"module": module, "args": args, "env": dict(env), "cwd": str(folder)}
        job |= {"out": str(out), "err": str(err), "seconds": seconds}
        job |= {"processes": processes, "as_gpus": as_gpus}
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write(json.dumps(job) + "\n")
        self.parent.stdin.flush()
        for line in self.parent.stdout:
            if line.startswith('{"code"'):
                return json.loads(line)["code"]
        raise AssertionError(f"runs are forked from a process that ended with {self.parent.wait()}")

    def end(self) -> None:
        atexit.unregister(self.end)
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait()
