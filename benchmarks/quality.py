"""Which record of a teacher makes the best student, byte for byte.

    python benchmarks/quality.py [--quick] [--only PATTERN] [--kinds …] [--seeds N] [--hours H]

SmolLM2-135M-Instruct teaches copies of itself that lost 5 and 10 of its 30 layers. All students of
a seed see the same tokens in the same order; only the record of the teacher differs. What counts is
KL(teacher || student) over the whole vocabulary on held-out text, and of it the share of the gain
over SFT that the whole vocabulary gives: (SFT - kind) / (SFT - full), by text, student, T and seed.

Every run is kept as it ends in outputs/quality/runs.jsonl, and the same command goes on from there;
with `--hours` it stops before a run that would end later. The results and the plot go to
benchmarks/results/quality.json and quality.png.
"""

import argparse
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from common import RESULTS, ROOT, fill, keep, rows
from students.plot import draw
from students.texts import TEACHER, text
from students.training import HELD_OUT_WINDOWS, Lesson, Run, measure

sys.path.insert(0, str(ROOT / "demo"))
from models import DROPPED_LAYERS, cut_layers

FOLDER = ROOT / "outputs/quality"
STUDENTS = {"cut5": DROPPED_LAYERS, "cut10": tuple(range(1, 30, 3))}
FIXED = ("sft", "full")
AT_1 = (
    "sampled:6", "sampled:12", "sampled:8", "tail_bucket:16", "axolotl_kd:64", "renormalized:64",
    "nucleus:0.9", "sampled:16", "independent:16", "sampled:4", "independent:8", "tail_bucket:64",
    "topk_and_draws:8+8", "systematic:8", "systematic:16", "independent:50", "flat_draws:16",
    "teacher_renormalized:64", "renormalized:16",
)  # fmt: skip
AT_2 = (
    "sampled:20", "tail_bucket:16", "axolotl_kd:64", "sampled:16", "independent:16", "sampled:8",
    "renormalized:64", "tail_bucket:64", "sampled:32", "independent:50", "topk_and_draws:8+8",
    "flat_draws:16", "teacher_renormalized:64",
)  # fmt: skip
FEWER_AT_1 = (
    "sampled:12", "sampled:6", "axolotl_kd:64", "tail_bucket:16", "renormalized:64", "nucleus:0.9",
)  # fmt: skip
FEWER_AT_2 = ("sampled:20", "axolotl_kd:64", "tail_bucket:16")
DRAWN = ("sampled:8", "independent:8")
SETTING = ("text", "student", "steps", "epochs", "windows", "precision")
QUICK = ("sampled:8", "tail_bucket:16", "renormalized:16")


def grid(seeds: int) -> Iterator[Run]:
    """All runs, those first that say most: steps of some 950 tokens, longer and shorter ones, more
    of them, and several passes over the same text."""
    for name, student in product(("docstrings", "teacher"), STUDENTS):
        for seed, (temperature, kinds) in product(range(seeds), ((1.0, AT_1), (2.0, AT_2))):
            for kind in (*FIXED, *kinds):
                yield Run(name, student, kind, temperature, seed)
    others = (
        ("cut5", {"windows": 9}), ("cut10", {"windows": 9}),
        ("cut5", {"windows": 1}), ("cut5", {"windows": 1, "steps": 48}),
    )  # fmt: skip
    for seed, (student, other) in product(range(seeds), others):
        for temperature, kinds in ((1.0, FEWER_AT_1), (2.0, FEWER_AT_2)):
            for kind in (*FIXED, *kinds):
                yield Run("docstrings", student, kind, temperature, seed, **other)
    for seed, fresh in product(range(seeds), (False, True)):
        for kind in DRAWN if fresh else (*FIXED, *DRAWN):
            passes = {"windows": 1, "steps": 48, "epochs": 3, "fresh": fresh}
            yield Run("docstrings", "cut5", kind, 1.0, seed, **passes)


def quick() -> Iterator[Run]:
    for kind in (*FIXED, *QUICK):
        yield Run("docstrings", "cut5", kind, 1.0, seed=0, steps=4, windows=1)


class Lessons:
    """What the teacher says of each text, worked out when it is first asked for."""

    def __init__(self, folder: Path, windows: int):
        self.folder = folder
        self.windows = windows
        self.made: dict[tuple[str, str], Lesson] = {}

    def __call__(self, name: str, part: str) -> Lesson:
        if (name, part) not in self.made:
            windows = self.windows if part == "train" else HELD_OUT_WINDOWS
            self.made[name, part] = Lesson(text(name, self.folder)[part], TEACHER, windows)
        return self.made[name, part]


def said(row: dict) -> str:
    return f"{row['name']:<60}{row['bytes_a_token']:9.1f} B  KL {row['kl']:.4f}"


def shares(found: list[dict]) -> list[dict]:
    """Per setting and kind: means over seeds, and the share of full's gain with its spread."""
    by: dict[tuple, dict[tuple, dict]] = defaultdict(dict)
    for row in found:
        setting = tuple(row[key] for key in SETTING)
        by[setting][row["kind"], row["temperature"], row["fresh"], row["seed"]] = row
    out = []
    for setting, runs in sorted(by.items()):
        kinds = dict.fromkeys((kind, t, fresh) for kind, t, fresh, _ in runs)
        for kind, temperature, fresh in kinds:
            kls, gains, sizes = [], [], []
            for (name, t, new, seed), row in runs.items():
                if (name, t, new) != (kind, temperature, fresh):
                    continue
                kls.append(row["kl"])
                sizes.append(row["bytes_a_token"])
                sft, full = (
                    runs.get((other, at, False, seed))
                    for other, at in (("sft", 1.0), ("full", temperature))
                )
                if sft and full:
                    gains.append((sft["kl"] - row["kl"]) / (sft["kl"] - full["kl"]))
            out.append(
                {
                    **dict(zip(SETTING, setting, strict=True)),
                    "kind": kind,
                    "temperature": temperature,
                    "fresh": fresh,
                    "seeds": len(kls),
                    "bytes_a_token": statistics.mean(sizes),
                    "kl": statistics.mean(kls),
                    "share": statistics.mean(gains) if gains else None,
                    "share_least": min(gains, default=None),
                    "share_most": max(gains, default=None),
                }
            )
    return out


def show(summary: list[dict]) -> None:
    for row in summary:
        share = "" if row["share"] is None else (
            f"{row['share']:6.3f}  ({row['share_least']:.3f} to {row['share_most']:.3f})"
        )  # fmt: skip
        kind = f"{row['kind']}, drawn anew" if row["fresh"] else row["kind"]
        print(
            f"{row['text']:<11}{row['student']:<6}{row['steps']:>3} steps of {row['windows']} "
            f"{row['precision']} T={row['temperature']:g} "
            f"{kind:<24}{row['bytes_a_token']:10.1f} B  KL {row['kl']:.4f}  {share}"
            f"  {row['seeds']} seeds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 steps of five kinds; minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="runs whose name has this pattern (re)")
    parser.add_argument("--kinds", default="", help="only these records, as in sft,full,sampled:8")
    parser.add_argument("--hours", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models, texts and runs")
    parser.add_argument("--report", action="store_true", help="only what is there already")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, dropped in STUDENTS.items():
        cut_layers(TEACHER, options.folder / name, dropped)
    log = options.folder / ("quick.jsonl" if options.quick else "runs.jsonl")
    kinds = options.kinds.split(",") if options.kinds else ()
    runs = [
        run
        for run in (quick() if options.quick else grid(options.seeds))
        if re.search(options.only, run.name) and (not kinds or run.kind in kinds)
    ]
    if not options.report:
        windows = max((run.among for run in runs), default=0)
        lessons = Lessons(options.folder, windows)
        # SFT has no temperature: it is done once.
        by_name = {run.name: run for run in runs if run.kind != "sft" or run.temperature == 1}

        def one(name: str) -> dict:
            run = by_name[name]
            texts = (lessons(run.text, part) for part in ("train", "heldout"))
            return measure(run, *texts, options.folder / run.student)

        fill([{"name": name} for name in by_name], log, options.hours, one, said)
    found = rows(log)
    summary = shares(found)
    show(summary)
    if not options.quick:
        keep("quality", {"runs": found, "summary": summary})
        draw(summary, RESULTS / "quality.png")


if __name__ == "__main__":
    main()
