"""The problems of example_configs/r1-recipe, one digit: chats that solve them, and what a model
makes of those that nobody trained on.

A step of the arithmetic, then the answer: `9 - 2 = 7. Answer: 7`.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedModel

from axolotl_distill.filter.step import Candidate
from axolotl_distill.filter.steps.verify.args import VerifyArgs
from axolotl_distill.filter.steps.verify.step import VerifyStep

ROOT = Path(__file__).resolve().parent.parent.parent
SYSTEM = {"role": "system", "content": "Solve it."}
HELD_OUT, GRADED, MOST_TOKENS, BATCH = 120, 60, 20, 40
IGNORE = -100
VERDICT = VerifyArgs(method="numeric", answer="answer", extract="after:Answer:")


def problems(folder: Path, train: int) -> tuple[list[dict], list[dict]]:
    """(train, held out): rows of {prompt, answer, source}, always the same for the same number."""
    if not (folder / "heldout.jsonl").exists():
        command = [str(ROOT / "example_configs/r1-recipe/make_prompts.py"), str(folder)]
        size = ["--train", str(train), "--held-out", str(HELD_OUT), "--digits", "1"]
        subprocess.run([sys.executable, *command, *size], check=True)
    made = (folder / f"{part}.jsonl" for part in ("train", "heldout"))
    found, heldout = ([json.loads(line) for line in path.open()] for path in made)
    if (len(found), len(heldout)) != (train, HELD_OUT):
        raise SystemExit(
            f"{folder} has {len(found)} and {len(heldout)} problems, and {train} and {HELD_OUT} "
            "are wanted: it is of another version. Move it away."
        )
    return found, heldout


def asked(row: dict) -> list[dict[str, str]]:
    return [SYSTEM, {"role": "user", "content": row["prompt"]}]


def solved(row: dict) -> dict[str, Any]:
    """The chat of a problem and its right solution."""
    if row["source"] == "chain_sum":
        (sum_,) = re.findall(r"What is (.*)\?", row["prompt"])
    else:
        first, second = re.findall(r"\d+", row["prompt"])
        sum_ = f"{first} {'-' if 'gave' in row['prompt'] else '+'} {second}"
    answer = {"role": "assistant", "content": f"{sum_} = {row['answer']}. Answer: {row['answer']}"}
    return {"messages": [*asked(row), answer]}


@dataclass(frozen=True)
class Text:
    """Answers to problems, as a model wrote them.

    ids     int64 [rows, S]: prompts padded on the left, then what was written, padded on the right
    mask    int64 [rows, S]: 1 at tokens of both
    labels  int64 [rows, S - 1]: what a position has to predict of the answer, stop token included,
            else IGNORE
    words   the answers without special tokens
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    words: list[str]


class Exam:
    """Problems that nobody trained on, and a tokenizer."""

    def __init__(self, rows: list[dict], tokenizer: Path):
        self.rows = rows
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, padding_side="left")

    @torch.inference_mode()
    def written(self, model: PreTrainedModel, *, sampled: bool, seed: int = 0) -> Text:
        """A model's likeliest answers, or such as it draws at T = 1."""
        chats = [asked(row) for row in self.rows]
        prompts = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        start = prompts["input_ids"].shape[1]
        stop = self.tokenizer.eos_token_id
        torch.manual_seed(seed)
        found = torch.full((len(chats), start + MOST_TOKENS), stop)
        for at in range(0, len(chats), BATCH):
            some = {key: prompts[key][at : at + BATCH] for key in ("input_ids", "attention_mask")}
            out = model.generate(
                **some, max_new_tokens=MOST_TOKENS, do_sample=sampled, top_k=0, top_p=1.0,
                temperature=1.0, eos_token_id=stop, pad_token_id=stop,
            )  # fmt: skip
            found[at : at + BATCH, : out.shape[1]] = out
        own = found[:, start:]
        # What comes behind the first stop token is padding.
        behind = ((own == stop).cumsum(1) - (own == stop).long()) > 0
        labels = torch.full((len(chats), found.shape[1] - 1), IGNORE)
        labels[:, start - 1 :] = own.masked_fill(behind, IGNORE)
        mask = torch.cat([prompts["attention_mask"], (~behind).long()], 1)
        words = self.tokenizer.batch_decode(own, skip_special_tokens=True)
        return Text(found, mask, labels, words)

    def right(self, text: Text) -> float:
        """The share of answers that the project's verifier finds right."""
        step = VerifyStep(VERDICT)
        rows = [
            Candidate(
                messages=asked(row),
                content=words,
                meta={"answer": row["answer"]},
                fault=None,
                given=None,
            )
            for row, words in zip(self.rows, text.words, strict=True)
        ]
        verdicts = [verdict.keep for verdict in step.judge(rows)]
        step.close()
        return sum(verdicts) / len(verdicts)


@torch.inference_mode()
def log_probs(model: PreTrainedModel, text: Text) -> list[Tensor]:
    """What a model says before every token of the first GRADED answers: fp32 [n, V] for BATCH of
    them at a time."""
    found = []
    for at in range(0, GRADED, BATCH):
        part = slice(at, min(at + BATCH, GRADED))
        hidden = model.model(
            input_ids=text.ids[part],
            attention_mask=text.mask[part],
            position_ids=(text.mask[part].cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        found.append(model.lm_head(hidden[:, :-1][text.labels[part] != IGNORE]).log_softmax(-1))
    return found


def kl(of: list[Tensor], against: list[Tensor]) -> float:
    """KL(of || against) at T = 1 over the whole vocabulary, nats, the mean over tokens."""
    sums = [
        F.kl_div(q, p, log_target=True, reduction="sum").item()
        for p, q in zip(of, against, strict=True)
    ]
    return sum(sums) / sum(map(len, of))
