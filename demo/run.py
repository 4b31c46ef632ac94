"""Run one step of the demo: its output goes to a log, the terminal shows what it is and how long.

python demo/run.py TITLE NAME COMMAND…
"""

import subprocess
import sys
import time
from pathlib import Path

LOGS = Path("outputs/demo/logs")


def main(title: str, name: str, command: list[str]) -> int:
    log = LOGS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{title} … ", end="", flush=True)
    start = time.monotonic()
    with log.open("w") as file:
        code = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    print(f"{time.monotonic() - start:.0f} s" if code == 0 else f"failed, see {log}")
    if code:
        print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
