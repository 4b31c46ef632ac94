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
import re
import shutil
import sys
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from common import ROOT, fill, keep, rows, summed_up
from students.arms import PROMPTS, answers, distills, keep_model, merged, train, write_rows
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

    def run(self, arm: str, seed: int) -> dict:
        """One student, trained and scored, or what is scored as it is."""
        if arm in BEGINNINGS:
            return self.scores(_load(BEGINNINGS[arm](self)))
        folder = self.folder / f"run-{arm.replace(' ', '-')}-{seed}"
        config = {
            "base_model": str(self.student()),
            "distill": distills(self.teacher())[arm],
            "datasets": self._data("answers", self.rows),
            "max_steps": STEPS,
            "seed": 100 + seed,
        }
        trained = train(folder, config)
        model = merged(self.student(), folder / "out")
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
        keep_model(merged(base, self.folder / "run/out"), TEACHER, path)
        print(f"made {path.name} in {time.monotonic() - start:.0f} s", flush=True)


def _load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


BEGINNINGS = {
    "the teacher": School.teacher,
    "the student, cut": lambda school: cut_layers(TEACHER, STUDENT),
    "the student, warmed up": School.student,
}
"""What is scored as it is."""


def said(row: dict) -> str:
    return (
        f"{row['arm']:<24}{row['seed']}  {row['right']:.3f} right, KL {row['kl_own']:.4f} on its "
        f"own, {row['kl_teachers']:.4f} on the teacher's answers"
    )


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
            {"arm": name, "seed": seed}
            for seed in options.seeds
            for name in distills(options.folder / "teacher")
            if re.search(options.only, name)
        ]
        wanted += [{"arm": name, "seed": 0} for name in BEGINNINGS]
        fill(wanted, log, options.hours, School(options.folder).run, said)
    found = rows(log)
    summary = summed_up(found, ("arm",), (*SCORES, "writing"))
    show(summary)
    keep("on_policy", {"runs": found, "summary": summary})


if __name__ == "__main__":
    main()
