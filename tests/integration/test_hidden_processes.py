"""Hidden states of a live teacher in two processes: every step has one process's loss and
gradients, and the projections are one thing."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from safetensors.torch import load_file
from support.axolotl_run import Plan, Run, run_fleet
from support.stores import random_rows
from support.strategies import LORA_HEAD, shared_by

from axolotl_distill.errors import ConfigError
from axolotl_distill.host.hidden import FILE, check_hidden_trainer

pytestmark = pytest.mark.axolotl

EMPTY = (3, 5, 7, 8, 10)
"""Rows that supervise nothing. Of two processes the second has every other row: in the second step
it has no token, and in the third the first has none."""
STEPS = 4


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_llama_dir, tiny_model) -> dict[str, Any]:
    """A student of width 64, a teacher of 96, and rows of 20 to 80 tokens."""
    folder = tmp_path_factory.mktemp("shared")
    teacher = tiny_model(seed=1, hidden_size=96, num_hidden_layers=3)
    teacher.save_pretrained(folder / "teacher")
    teacher.tokenizer.save_pretrained(folder / "teacher")
    rows = random_rows(teacher.tokenizer, [20 + (37 * i) % 61 for i in range(16)], seed=11)
    for index in EMPTY:
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hidden = {"pairs": 2, "weight": 0.5, "learning_rate": 0.05, "loss": "normalized_mse"}
    return {
        "base_model": str(tiny_llama_dir),
        "plugins": [
            "axolotl_distill",
            "support.run_spy.RunSpy",
            "support.gradient_spy.GradientSpy",
        ],
        "datasets": [{"path": str(folder / "rows.jsonl"), "type": None}],
        "distill": {"alpha": 0.7, "teacher": str(folder / "teacher"), "hidden_states": hidden},
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,
        "gradient_checkpointing": True,
        "save_strategy": "steps",
        "save_steps": 2,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory, shared) -> dict[str, Run]:
    return one_and_two(tmp_path_factory.mktemp("runs"), shared)


def one_and_two(folder, config) -> dict[str, Run]:
    plans = {name: Plan({**config, **shared_by(n, 4)}, n) for name, n in (("one", 1), ("two", 2))}
    return run_fleet(folder, plans)


def gone_on(folder, config, two: Run) -> Run:
    keys = {**config, **shared_by(2, 4), "resume_from_checkpoint": str(two.output / "checkpoint-2")}
    return run_fleet(folder, {"resumed": Plan(keys, 2)})["resumed"]


def check(run: Run, one: Run, begins: int = 0) -> None:
    """A run of two processes from step `begins` on is that of one: losses and metrics of every
    step, the gradients of the first to rounding (then weights differ by it), the projections."""
    assert run.code == one.code == 0
    assert {inside["wrapper"] for inside in run.inside} == {"DistributedDataParallel"}
    expected, alone = one.inside[0]["steps"][begins:], gradients(one, 0)[begins:]
    for rank, inside in enumerate(run.inside):
        for step, like in zip(inside["steps"], expected, strict=True):
            # torch adds up 3 million squares of fp32.
            norm, expected_norm = step.pop("grad_norm"), like["grad_norm"]
            assert norm == pytest.approx(expected_norm, rel=5e-5), rank
            others = {n: v for n, v in like.items() if n != "grad_norm"}
            assert step == pytest.approx(others, rel=1e-6), rank
        for number, (step, like) in enumerate(zip(gradients(run, rank), alone, strict=True)):
            assert sum("projections" in name for name in like) == 2
            assert step.keys() == like.keys()
            bound = 1e-6 if begins + number == 0 else 3e-5
            for name, gradient in like.items():
                gap = (step[name] - gradient).norm().item()
                assert gap <= bound * gradient.norm().item(), (rank, number, name, gap)
    ours, theirs = projections(run, STEPS), projections(one, STEPS)
    for name, tensor in theirs.items():
        assert (tensor - projections(one, 2)[name]).abs().amax() > 0.005
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def gradients(run: Run, rank: int) -> list[dict[str, torch.Tensor]]:
    found: list[dict[str, torch.Tensor]] = torch.load(run.output.parent / f"gradients-{rank}.pt")
    return found


def projections(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.output / f"checkpoint-{step}" / FILE)


def test_two_processes_are_one(runs):
    tokens = [inside["tokens"] for inside in runs["two"].inside]
    assert [sum(mine[2:4]) > 0 for mine in tokens] == [True, False]
    assert [sum(mine[4:6]) > 0 for mine in tokens] == [False, True]
    check(runs["two"], runs["one"])


@pytest.mark.slow
def test_they_go_on_as_if_uninterrupted(tmp_path, shared, runs):
    check(gone_on(tmp_path, shared, runs["two"]), runs["one"], begins=2)


@pytest.mark.slow
def test_beside_an_adapter(tmp_path, shared):
    found = one_and_two(tmp_path, {**shared, **LORA_HEAD})
    check(found["two"], found["one"])


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_shards_is_refused(kind):
    trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=DistributedType[kind]))
    with pytest.raises(ConfigError, match=f"{kind} is in force.*with DDP"):
        check_hidden_trainer(trainer)
