"""What every benchmark shares: the device's name, medians, and where results are kept."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"


def device_name() -> str:
    """The GPU's name, or the CPU's with its thread count."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0].split(":", 1)[1].strip() if named else model
    return f"{model}, {torch.get_num_threads()} threads"


def alternate(
    contenders: dict[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each, taking turns, so that a slow spell of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def rows(log: Path) -> list[dict[str, Any]]:
    """Of a log of runs, JSON lines; none where there is no log."""
    if not log.exists():
        return []
    found = []
    for line in log.read_text().splitlines():
        # A kill may have left half a line; that run is done again.
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def keep(name: str, results: Any, folder: Path = RESULTS) -> Path:
    """Write FOLDER/NAME.json with device, versions and time of day."""
    folder.mkdir(exist_ok=True)
    about = {
        "device": device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": results,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(about, indent=1) + "\n")
    print(f"kept in {path.relative_to(ROOT)}")
    return path
