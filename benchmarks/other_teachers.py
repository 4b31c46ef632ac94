"""What a teacher gives beyond its text: one with another tokenizer, and one whose layers are seen.

    python benchmarks/other_teachers.py [--seeds 0 1 2] [--only PATTERN] [--hours H] [--report]

SmolLM2-135M-Instruct answers questions about Python's library and sums of up to three digits, at
T = 1. Its students are copies of it:

    deepseek, sentencepiece   without 5 of its 30 layers, with the tokens of DeepSeek V4 or of
                              Mistral v3; their embeddings are means of its own, and some steps on
                              texts that others wrote make them readers
    cut5, cut10               without 5 or 10 layers, with its tokens

All arms of a student see the same answers in the same order of a seed, in as many updates; every
run is an `axolotl train` of a YAML, and nothing but `distill:` differs. What counts is how well a
student knows answers that the teacher gave to questions which nobody trained on: nats a byte, less
the teacher's own. That is KL(teacher || student) of whole answers, by bytes, whatever the tokens
(an answer has the probability of its usual cut alone, which is a little less).

Every run is kept as it ends in outputs/other-teachers/runs.jsonl, and the same command goes on from
there; with `--hours` it stops before a run that would end later. The results go to
benchmarks/results/other_teachers.json.
"""

import argparse
import re
import shutil
import sys
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import ROOT, fill, keep, rows, summed_up
from students.arms import answers, keep_model, merged, train, write_rows
from students.tongues import (
    SYSTEM,
    Known,
    docstrings,
    known,
    questions,
    sums,
    with_tokenizer,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "demo"))
from models import DROPPED_LAYERS, TEACHER, cut_layers
from support import tokenizers

FOLDER = ROOT / "outputs/other-teachers"
CHATS = ROOT / ".cache/pydoc-chat"
WARM_DOCSTRINGS, WARM_SUMS, WARM_STEPS = 360, 120, 30
ASKED_SUMS, HELD_OUT_SUMS, STEPS, MOST = 200, 50, 16, 96
CUT = {"cut5": DROPPED_LAYERS, "cut10": tuple(range(1, 30, 3))}
READERS = {"deepseek": tokenizers.deepseek, "sentencepiece": tokenizers.sentencepiece}
GRADED = {"teacher": str(TEACHER), "alpha": 0.9}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"teacher": "text"},
    **{
        method: {**GRADED, "cross_tokenizer": {"method": method}}
        for method in ("span", "common_tokens", "gold", "uld", "embedding", "min_ed")
    },
    # Its authors' temperature, at which it is small beside a cross-entropy.
    "alm": {
        **{**GRADED, "alpha": 1.0},
        "cross_tokenizer": {"method": "alm", "binarization_temperature": 100.0},
    },
}
LAYERS: dict[str, dict[str, Any]] = {
    "sft": {"teacher": "text"},
    "forward_kl": GRADED,
    **{
        f"forward_kl and {loss}": {**GRADED, "hidden_states": {"loss": loss}}
        for loss in ("cosine", "normalized_mse")
    },
}
PARTS = ("docstrings", "sums")
SUM = re.compile(r"What is \d+ [+-] \d+\?")


def arms(name: str) -> dict[str, dict[str, Any]]:
    """Of a student: the `distill:` of each."""
    return METHODS if name in READERS else LAYERS


class School:
    """Texts, students before they learn, and what all are held to; made when first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def beginner(self, name: str) -> Path:
        path = self.folder / name
        if path.exists():
            return path
        if name in CUT:
            return cut_layers(TEACHER, path, CUT[name])
        raw = with_tokenizer(self.beginner("cut5"), READERS[name](), self.folder / f"{name}-raw")
        solved = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": so}]}
            for asked, so in sums(WARM_SUMS, seed=1)
        ]
        texts = docstrings(CHATS / "train.jsonl", WARM_DOCSTRINGS) + solved
        config = {
            "base_model": str(raw),
            "adapter": None,
            "distill": {"teacher": "text"},
            "datasets": [data(write_rows(texts, self.folder / "warm.jsonl"))],
            "max_steps": WARM_STEPS,
            "learning_rate": 4e-4,
            "sequence_len": 192,
            "seed": 1,
        }
        start = time.monotonic()
        train(self.folder / "run", config)
        keep_model(load(self.folder / "run/out"), raw, path)
        shutil.rmtree(raw)
        print(f"made {name} in {time.monotonic() - start:.0f} s", flush=True)
        return path

    def answered(self, part: str) -> str:
        """A file of chats: what the teacher answers to the questions of `train` or `heldout`."""
        file = CHATS / f"{part}.jsonl"
        asked = questions(file)[WARM_DOCSTRINGS if part == "train" else 0 :]
        count, seed = (ASKED_SUMS, 2) if part == "train" else (HELD_OUT_SUMS, 3)
        asked += [question for question, _ in sums(count, seed)]
        prompts = write_rows([{"prompt": one} for one in asked], self.folder / f"{part}.jsonl")
        return answers(
            TEACHER, prompts, SYSTEM["content"], self.folder / f"answers-{part}", MOST, whole=True
        )

    @cached_property
    def exam(self) -> dict[str, list]:
        chats = [row["messages"] for row in rows(Path(self.answered("heldout")))]
        parts: dict[str, list] = {part: [] for part in PARTS}
        for chat in chats:
            parts["sums" if SUM.fullmatch(chat[1]["content"]) else "docstrings"].append(chat)
        return parts

    @cached_property
    def teachers(self) -> dict[str, Known]:
        return self.knows(TEACHER)

    def knows(self, folder: Path, adapter: Path | None = None) -> dict[str, Known]:
        model = load(folder) if adapter is None else merged(folder, adapter)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return {part: known(model, tokenizer, chats) for part, chats in self.exam.items()}

    def scores(self, found: dict[str, Known]) -> dict[str, Any]:
        """Nats a byte above the teacher's, by part and of all."""
        both = {"student": found, "teacher": self.teachers}
        per = {
            who: {part: one.nats_a_byte for part, one in of.items()}
            | {"all": sum(k.nats for k in of.values()) / sum(k.bytes for k in of.values())}
            for who, of in both.items()
        }
        return {
            **{part: per["student"][part] - per["teacher"][part] for part in (*PARTS, "all")},
            "teacher_all": per["teacher"]["all"],
            "bytes": sum(one.bytes for one in found.values()),
            "tokens": sum(one.tokens for one in found.values()),
        }

    def run(self, student: str, arm: str, seed: int) -> dict[str, Any]:
        """One student, trained and scored; `before` is one that has not begun."""
        base = self.beginner(student)
        if arm == "before":
            return self.scores(self.knows(base))
        folder = self.folder / f"run-{student}-{arm.replace(' ', '-')}-{seed}"
        config = {
            "base_model": str(base),
            "distill": arms(student)[arm],
            "datasets": [data(self.answered("train"))],
            "max_steps": STEPS,
            "seed": 100 + seed,
        }
        trained = train(folder, config)
        found = self.scores(self.knows(base, folder / "out"))
        shutil.rmtree(folder)
        return {**found, **asdict(trained)}


def data(path: str) -> dict[str, str]:
    return {"path": path, "type": "chat_template"}


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def said(row: dict) -> str:
    return (
        f"{row['student']:<14}{row['arm']:<28}{row['seed']}  {row['all']:.4f} nats a byte above "
        f"the teacher's, {row['docstrings']:.4f} and {row['sums']:.4f}"
    )


def show(summary: list[dict]) -> None:
    for row in summary:
        cells = [
            f"{part} " + " ".join(f"{row[part][key]:.4f}" for key in ("mean", "least", "most"))
            for part in (*PARTS, "all")
        ]
        print(f"{row['student']:<14}{row['arm']:<28}{row['seeds']} seeds  " + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="STUDENT ARM with this pattern (re)")
    parser.add_argument("--hours", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of models, texts and runs")
    parser.add_argument("--report", action="store_true", help="only what is there already")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "runs.jsonl"
    if not options.report:
        names = (*READERS, *CUT)
        runs = [(name, "before", 0) for name in names]
        runs += [
            (name, arm, seed) for seed in options.seeds for name in names for arm in arms(name)
        ]
        wanted = [
            {"student": name, "arm": arm, "seed": seed}
            for name, arm, seed in runs
            if re.search(options.only, f"{name} {arm}")
        ]
        fill(wanted, log, options.hours, School(options.folder).run, said)
    found = rows(log)
    summary = summed_up(found, ("student", "arm"), (*PARTS, "all", "cpu_seconds"))
    show(summary)
    keep("other_teachers", {"runs": found, "summary": summary})


if __name__ == "__main__":
    main()
