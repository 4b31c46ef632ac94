"""`on_policy.keep` in the real Axolotl: kept, gone on with, filtered, and trained on again."""

import json

import pytest
import torch
import yaml
from support.axolotl_run import run_axolotl
from support.cli import distill_here
from support.strategies import LORA
from support.sums import write_sums
from transformers import AutoModelForCausalLM

from axolotl_distill.rollout.kept import graded_rows

pytestmark = [pytest.mark.axolotl, pytest.mark.slow]


@pytest.fixture
def config(tmp_path, tiny_model, tiny_llama_dir):
    """The teacher is the student but for some noise: of two models that have nothing in common
    every position is as far from every other, and records at wrong ones would not show."""
    teacher = tiny_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.3 * torch.randn_like(weight) * weight.std())
    teacher.save_pretrained(tmp_path / "teacher")
    teacher.tokenizer.save_pretrained(tmp_path / "teacher")
    write_sums(tmp_path / "chats.jsonl")
    return {
        **LORA,
        "base_model": str(tiny_llama_dir),
        "distill": {
            "teacher": str(tmp_path / "teacher"),
            "divergence": "reverse_kl",
            "alpha": 1.0,
            "on_policy": {
                "lmbda": 0.7, "max_new_tokens": 12, "keep": str(tmp_path / "rollouts"),
            },
        },
        "datasets": [{"path": str(tmp_path / "chats.jsonl"), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "num_epochs": 8,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
    }  # fmt: skip


def rows_of(folder):
    rows = graded_rows(folder / "part-00000.jsonl")
    return [(row.trajectory, row.ids.tolist()) for row in rows]


def test_from_a_step_s_text_to_a_training_on_it(tmp_path, config):
    kept = tmp_path / "rollouts"
    first = run_axolotl(tmp_path / "first", config)
    whole = rows_of(kept)
    own = [number for number, step in enumerate(first.steps, 1) if step["rollout/own_text"]]
    assert sorted({row["meta"]["step"] for row, _ in whole}) == own
    # Of the prompts all are messages again, and the questions of the data.
    for row, _ in whole:
        assert [message["role"] for message in row["messages"]][-1] == "user"
        assert row["messages"][-1]["content"].startswith("What is ") and "prompt" not in row["meta"]

    resume = {"resume_from_checkpoint": str(first.output / "checkpoint-3")}
    run_axolotl(tmp_path / "again", {**config, **resume})
    assert rows_of(kept) == whole

    shown = json.loads(distill_here("verify", kept, "--json").stdout)
    assert shown["rows"] == len(whole) and "rows" in shown["store"]

    recipe = {
        "filter": {
            "input": str(kept), "output": str(tmp_path / "chosen"), "max_drop": 1.0,
            "steps": ["deduplicate"],
        },
    }  # fmt: skip
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    distill_here("filter", tmp_path / "recipe.yml")
    made = distill_here(
        *("store", "rollouts", kept, "--only", tmp_path / "chosen"),
        *("--output", tmp_path / "store", "--json"),
    )
    assert 0 < json.loads(made.stdout)["rows"] <= len(whole)

    check_the_records(tmp_path, config)
    offline = {
        **config,
        "distill": {"divergence": "reverse_kl", "alpha": 0.5},
        "datasets": [
            {"path": str(tmp_path / "store"), "type": "axolotl_distill.store"},
            {"path": str(tmp_path / "chats.jsonl"), "type": "axolotl_distill.chat"},
        ],
    }
    run = run_axolotl(tmp_path / "offline", offline)
    # Which text was written depends on the processor's rounding, and so does each step's loss; a
    # step of chats alone has no teacher.
    taught = [step for step in run.steps if "distill/kl" in step]
    assert taught and all(0.0 < step["distill/kl"] < 20.0 for step in taught)
    assert all(0.0 < step["distill/teacher_mass"] <= 1.0 for step in taught)


def check_the_records(tmp_path, config):
    """The first step on all rows has the KL of what both models say where the rows were written:
    records that stand one token off would have another."""
    store = tmp_path / "rollouts/store"
    number = len(list(graded_rows(tmp_path / "rollouts/part-00000.jsonl")))
    once = {
        **config,
        "distill": {"divergence": "reverse_kl", "alpha": 1.0},
        "datasets": [{"path": str(store), "type": "axolotl_distill.store"}],
        "micro_batch_size": number,
        "max_steps": 1,
        "lora_dropout": 0.0,
    }
    run = run_axolotl(tmp_path / "once", once)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for folder in (config["base_model"], tmp_path / "teacher")
    )
    kls = []
    for row in graded_rows(tmp_path / "rollouts/part-00000.jsonl"):
        ids = torch.from_numpy(row.ids.astype("int64"))[None]
        with torch.no_grad():
            q, p = (model(ids).logits[0].log_softmax(-1) for model in (student, teacher))
        predicting = range(row.prompt_tokens - 1, len(row.ids) - 1)
        kls += [reverse_kl_of_top(q[t], p[t], k=64) for t in predicting]
    assert run.steps[0]["distill/kl"] == pytest.approx(sum(kls) / len(kls), rel=5e-3)


def reverse_kl_of_top(log_q, log_p, k):
    """KL(student || teacher) where all but the teacher's k likeliest tokens are one."""
    top = log_p.topk(k).indices
    q, p = (torch.cat([log[top].exp(), 1 - log[top].exp().sum(0, True)]) for log in (log_q, log_p))
    return float((q * (q / p).log()).sum())
