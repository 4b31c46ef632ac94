"""What every benchmark shares: the device's name, medians, and where results are kept."""

import json
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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


def fill(
    wanted: Iterable[dict[str, Any]],
    log: Path,
    hours: float,
    run: Callable[..., dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
) -> None:
    """Do those runs that the log does not have yet, and add each as it ends.

    wanted  what names a run: the arguments of `run`, which go into its row before what it found
    hours   no run is begun that would end later, if it takes as long as the longest of these
    said    a row in words
    """
    wanted = list(wanted)
    done = rows(log)
    end, longest = time.monotonic() + 3600 * hours, 0.0
    for names in wanted:
        if any(row.items() >= names.items() for row in done):
            continue
        if time.monotonic() + longest > end:
            print(f"{len(done)} runs are kept in {log}; the same command goes on")
            return
        start = time.monotonic()
        row = {**names, **run(**names)}
        taken = time.monotonic() - start
        longest = max(longest, taken)
        with log.open("a") as file:
            file.write("\n" + json.dumps(row))
        done.append(row)
        print(f"{said(row)}; {taken:.0f} s", flush=True)


def summed_up(
    found: list[dict[str, Any]], keys: Sequence[str], scores: Sequence[str]
) -> list[dict[str, Any]]:
    """Of the rows that are alike in `keys`: how many there are (`seeds`), and of each score that
    some have the mean, the least and the most."""
    by: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        by[tuple(row[key] for key in keys)].append(row)
    out = []
    for names, runs in by.items():
        summary: dict[str, Any] = {**dict(zip(keys, names, strict=True)), "seeds": len(runs)}
        for score in scores:
            values = [run[score] for run in runs if run.get(score) is not None]
            if values:
                spread = {"mean": statistics.mean(values), "least": min(values)}
                summary[score] = {**spread, "most": max(values)}
        out.append(summary)
    return out


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
