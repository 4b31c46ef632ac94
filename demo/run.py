"""Run one step of the demo: its output goes to a log, whose last line the terminal shows beside the
step, and how long it took.

python demo/run.py TITLE NAME COMMAND…
"""

import subprocess
import sys
import time
from pathlib import Path

LOGS = Path("outputs/demo/logs")


def waited(step: subprocess.Popen) -> int | None:
    """The step's exit code, or None when it still runs after a moment."""
    try:
        return step.wait(timeout=2.0)
    except subprocess.TimeoutExpired:
        return None


def last_line(log: Path) -> str:
    """What was written last, as it fits beside the title; a progress bar overwrites itself."""
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip()[:90] for line in reversed(lines) if line.strip()), "")


def main(title: str, name: str, command: list[str]) -> int:
    log = LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{title} … ", end="", flush=True)
    start = time.monotonic()
    with log.open("w") as file:
        step = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while (code := waited(step)) is None:
            if sys.stdout.isatty():
                print(f"\r\x1b[K{title} … {last_line(log)}", end="", flush=True)
    if sys.stdout.isatty():
        print(f"\r\x1b[K{title} … ", end="")
    print(f"{time.monotonic() - start:.0f} s" if code == 0 else f"failed, see {log}")
    if code:
        print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
