"""The process that runs of Axolotl are forked from, one of each test process (support/fleet.py)."""

import atexit
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


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
