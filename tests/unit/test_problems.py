"""What benchmarks/on_policy.py measures with: answers, verdicts, and the divergence on them."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from common import fill, rows, summed_up
from students.problems import GRADED, IGNORE, Exam, Text, kl, log_probs, solved

ROWS = [
    {"prompt": "What is 7 - 8?", "answer": "-1", "source": "chain_sum"},
    {"prompt": "Ann had 9 pens and gave 6 away. How many are left?", "answer": "3", "source": "s"},
    {"prompt": "Ben has 4 pens and gets 13 more. How many now?", "answer": "17", "source": "s"},
]


@pytest.fixture(scope="module")
def model(tiny_llama_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32).eval()


def test_solutions():
    said = [solved(row)["messages"][-1]["content"] for row in ROWS]
    assert said == ["7 - 8 = -1. Answer: -1", "9 - 6 = 3. Answer: 3", "4 + 13 = 17. Answer: 17"]


def test_what_is_likeliest_is_what_is_graded(model, tiny_llama_dir):
    """Prompts of unlike lengths: every labelled position predicts the token that greedy decoding
    took there, and what comes behind the first stop token is no label."""
    exam = Exam(ROWS * (GRADED // 3), tiny_llama_dir)
    text = exam.written(model, sampled=False)
    said = torch.cat(log_probs(model, text))
    labels = text.labels[:GRADED]
    assert (said.argmax(-1) == labels[labels != IGNORE]).float().mean() > 0.99
    start = int((text.labels != IGNORE).nonzero()[:, 1].min()) + 1
    assert (text.mask[:, start:].sum(1) == (text.labels != IGNORE).sum(1)).all()


def test_divergence(model, tiny_model, tiny_llama_dir):
    exam = Exam(ROWS * (GRADED // 3), tiny_llama_dir)
    text = exam.written(model, sampled=True, seed=3)
    own, other = log_probs(model, text), log_probs(tiny_model(seed=1), text)
    p, q = torch.cat(own).double(), torch.cat(other).double()
    assert kl(own, own) == 0.0
    assert kl(own, other) == pytest.approx(((p - q) * p.exp()).sum(-1).mean().item(), rel=1e-4)
    assert kl(own, other) != pytest.approx(kl(other, own), rel=1e-3)


def test_verdicts(tiny_llama_dir):
    words = ["7 - 8 = 1. Answer: -1", "9 - 6 = 3. Answer: 2", "4 + 13 = 17"]
    nothing = torch.zeros(3, 1, dtype=torch.long)
    text = Text(nothing, nothing, nothing[:, :0], words)
    assert Exam(ROWS, tiny_llama_dir).right(text) == pytest.approx(1 / 3)


def test_seeds_are_summed_up_and_a_torn_line_is_no_run(tmp_path):
    log = tmp_path / "runs.jsonl"
    log.write_text(
        '\n{"arm": "sft", "seed": 0, "right": 0.5, "writing": null}'
        '\n{"arm": "sft", "seed": 1, "right": 0.7, "writing": null}'
        '\n{"arm": "own", "seed": 0, "right": 0.6, "writing": 0.25}'
        '\n{"arm": "own", "seed": 1, "rig'
    )
    sft, own = summed_up(rows(log), ("arm",), ("right", "writing"))
    assert sft == {
        "arm": "sft", "seeds": 2, "right": {"mean": pytest.approx(0.6), "least": 0.5, "most": 0.7}
    }  # fmt: skip
    assert own["seeds"] == 1 and own["writing"] == {"mean": 0.25, "least": 0.25, "most": 0.25}


def test_what_the_log_has_is_not_done_again(tmp_path, capsys):
    """A run that a kill tore is; and with no time left none is begun."""
    log = tmp_path / "runs.jsonl"
    log.write_text('\n{"arm": "sft", "seed": 0, "right": 0.5}\n{"arm": "sft", "seed": 1, "ri')
    wanted = [{"arm": "sft", "seed": seed} for seed in range(3)]
    done = []

    def run(arm, seed):
        done.append(seed)
        return {"right": seed / 4}

    fill(wanted, log, 1.0, run, lambda row: f"seed {row['seed']}")
    assert done == [1, 2] and "seed 1; 0 s" in capsys.readouterr().out
    assert [row["right"] for row in rows(log)] == [0.5, 0.25, 0.5]
    fill([*wanted, {"arm": "own", "seed": 0}], log, -1.0, run, str)
    assert done == [1, 2] and "the same command goes on" in capsys.readouterr().out
