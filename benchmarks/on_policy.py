"""Who should write what a student learns from: its teacher, or itself.

    python benchmarks/on_policy.py [--seeds 0 1 2] [--only PATTERN] [--hours H] [--report]

SmolLM2-135M-Instruct learns to solve problems of one digit, and then teaches a copy of itself that
lost 5 of its 30 layers. All students begin with the same short SFT on the teacher's answers; then
every arm has the same number of updates, and in step i of a seed the same prompts:

    sft          the teacher's answers, drawn at T = 1, as text
    off-policy   the same answers, and what the teacher says of every token of them
    on-policy    what the student writes in that step, and what the teacher says of it
    mixed        a draw for each step: one or the other

Every run is an `axolotl train` of a YAML; nothing but `distill:` differs. What counts: problems
solved that nobody trained on (the verifier's verdict), and KL from the teacher on the student's own
answers and on the teacher's.

Every run is kept as it ends in outputs/on-policy/runs.jsonl, and the same command goes on from
there; with `--hours` it stops before a run that would end later. The results go to
benchmarks/results/on_policy.json.
"""

import argparse
import copy
import json
import re
import shutil
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from common import ROOT, keep, rows
from students.arms import PROMPTS, answers, distills, keep_model, student, train, write_rows
from students.problems import SYSTEM, Exam, Text, kl, log_probs, problems, solved
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(ROOT / "demo"))
from models import STUDENT, TEACHER, cut_layers

FOLDER = ROOT / "outputs/on-policy"
TEACHER_STEPS, WARM_STEPS, STEPS = 25, 12, 32
TEACHER_ROWS, STUDENT_ROWS = 600, PROMPTS * STEPS
WARM_ROWS = PROMPTS * WARM_STEPS
SCORES = ("right", "right_sampled", "kl_own", "kl_teachers", "reverse_kl_own", "cpu_seconds")


class School:
    """Teacher, warmed-up student and exam; each is made when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        train_rows, heldout = problems(folder, TEACHER_ROWS + WARM_ROWS + STUDENT_ROWS)
        parts = (TEACHER_ROWS, TEACHER_ROWS + WARM_ROWS, len(train_rows))
        self.taught, self.warm, self.rows = (
            train_rows[start:end] for start, end in zip((0, *parts), parts, strict=False)
        )
        self.exam = Exam(heldout, TEACHER)

    def teacher(self) -> Path:
        path = self.folder / "teacher"
        if not path.exists():
            gold = write_rows([solved(row) for row in self.taught], self.folder / "gold.jsonl")
            config = {
                "base_model": str(TEACHER),
                "distill": {"teacher": "text"},
                "datasets": [{"path": gold, "type": "chat_template"}],
                "max_steps": TEACHER_STEPS,
                "seed": 1,
            }
            self._make(TEACHER, config, path)
        return path

    def student(self) -> Path:
        path = self.folder / "student"
        if not path.exists():
            config = {
                "base_model": str(cut_layers(TEACHER, STUDENT)),
                "distill": {"teacher": "text"},
                "datasets": self._data("warm", self.warm),
                "max_steps": WARM_STEPS,
                "seed": 1,
            }
            self._make(STUDENT, config, path)
        return path

    def arm(self, name: str, seed: int) -> dict:
        """One student, trained and scored."""
        folder = self.folder / f"run-{name.replace(' ', '-')}-{seed}"
        config = {
            "base_model": str(self.student()),
            "distill": distills(self.teacher())[name],
            "datasets": self._data("answers", self.rows),
            "max_steps": STEPS,
            "seed": 100 + seed,
        }
        trained = train(folder, config)
        model = student(self.student(), folder / "out")
        scores = self.scores(model)
        shutil.rmtree(folder)
        return {**scores, **asdict(trained)}

    def scores(self, model: PreTrainedModel) -> dict:
        # It writes in bf16, as it did when it learnt; KL is in fp32.
        writer = copy.deepcopy(model).bfloat16()
        likeliest = self.exam.written(writer, sampled=False)
        own = self.exam.written(writer, sampled=True)
        by_teacher, by_student = log_probs(self.grader, own), log_probs(model, own)
        return {
            "right": self.exam.right(likeliest),
            "right_sampled": self.exam.right(own),
            "kl_own": kl(by_teacher, by_student),
            "reverse_kl_own": kl(by_student, by_teacher),
            "kl_teachers": kl(self.said, log_probs(model, self.teachers_text)),
            "tokens_own": sum(map(len, by_student)),
            "example": own.words[0],
        }

    @cached_property
    def grader(self) -> PreTrainedModel:
        return _load(self.teacher())

    @cached_property
    def teachers_text(self) -> Text:
        return self.exam.written(copy.deepcopy(self.grader).bfloat16(), sampled=True)

    @cached_property
    def said(self) -> list[Tensor]:
        return log_probs(self.grader, self.teachers_text)

    def _data(self, name: str, rows: list[dict]) -> list[dict]:
        """The teacher's answers to these; where the student writes, its prompts are theirs."""
        prompts = write_rows(rows, self.folder / f"{name}.jsonl")
        path = answers(self.teacher(), prompts, SYSTEM["content"], self.folder / name)
        return [{"path": path, "type": "chat_template"}]

    def _make(self, base: Path, config: dict, path: Path) -> None:
        start = time.monotonic()
        train(self.folder / "run", config)
        keep_model(student(base, self.folder / "run/out"), TEACHER, path)
        print(f"made {path.name} in {time.monotonic() - start:.0f} s", flush=True)


def _load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def fill(wanted: list[tuple[str, int]], school: School, log: Path, hours: float) -> None:
    """Do what is not in the log yet."""
    end, longest = time.monotonic() + 3600 * hours, 0.0
    for name, seed in wanted:
        done = {(row["arm"], row["seed"]) for row in rows(log)}
        if (name, seed) in done:
            continue
        if time.monotonic() + longest > end:
            print(f"{len(done)} runs are kept in {log}; the same command goes on")
            return
        start = time.monotonic()
        if name in BEGINNINGS:
            result = school.scores(_load(BEGINNINGS[name](school)))
        else:
            result = school.arm(name, seed)
        longest = max(longest, time.monotonic() - start)
        with log.open("a") as file:
            file.write("\n" + json.dumps({"arm": name, "seed": seed, **result}))
        print(
            f"{name:<24}{seed}  {result['right']:.3f} right, KL {result['kl_own']:.4f} on its own, "
            f"{result['kl_teachers']:.4f} on the teacher's answers; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )


BEGINNINGS = {
    "the teacher": School.teacher,
    "the student, cut": lambda school: cut_layers(TEACHER, STUDENT),
    "the student, warmed up": School.student,
}
"""What is scored as it is."""


def summed_up(found: list[dict]) -> list[dict]:
    """Per arm the mean over seeds of each score, and the least and the most."""
    by: dict[str, list[dict]] = defaultdict(list)
    for row in found:
        by[row["arm"]].append(row)
    out = []
    for name, runs in by.items():
        summary: dict = {"arm": name, "seeds": len(runs)}
        for score in (*SCORES, "writing"):
            values = [run[score] for run in runs if run.get(score) is not None]
            if values:
                spread = {"mean": statistics.mean(values), "least": min(values)}
                summary[score] = {**spread, "most": max(values)}
        out.append(summary)
    return out


def show(summary: list[dict]) -> None:
    for row in summary:
        cells = []
        for score in SCORES:
            if score in row:
                of = row[score]
                digits = 0 if score == "cpu_seconds" else 3
                text = " ".join(f"{of[key]:.{digits}f}" for key in ("mean", "least", "most"))
                cells.append(f"{score} {text}")
        print(f"{row['arm']:<24}{row['seeds']} seeds  " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="arms whose name has this pattern (re)")
    parser.add_argument("--hours", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models, texts and runs")
    parser.add_argument("--report", action="store_true", help="only what is there already")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "runs.jsonl"
    if not options.report:
        wanted = [
            (name, seed)
            for seed in options.seeds
            for name in distills(options.folder / "teacher")
            if re.search(options.only, name)
        ]
        wanted += [(name, 0) for name in BEGINNINGS]
        fill(wanted, School(options.folder), log, options.hours)
    found = rows(log)
    summary = summed_up(found)
    show(summary)
    keep("on_policy", {"runs": found, "summary": summary})


if __name__ == "__main__":
    main()
