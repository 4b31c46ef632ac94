"""The real Axolotl with a teacher that answers while the student trains."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from safetensors import safe_open
from support.axolotl_run import Plan, run_axolotl, run_fleet
from support.stores import random_rows
from support.strategies import LORA, LORA_HEAD, QLORA, fsdp2, shared_by, zero

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}


@pytest.fixture(scope="module")
def chats(tmp_path_factory, tiny_model):
    """Rows of tokens as text, so that Axolotl tokenises and masks them itself."""
    tokenizer = tiny_model().tokenizer
    rows = random_rows(tokenizer, [20 + (37 * i) % 61 for i in range(24)], seed=11)
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with path.open("w") as file:
        for row in rows:
            text = tokenizer.decode(row["input_ids"][:30])
            turns = [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, tiny_model):
    """Another model than the student, larger, with its head padded."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model = tiny_model(seed=1, hidden_size=96, vocab_size=49152 + 64)
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def live_config(tiny_llama_dir, teacher_dir, chats):
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 0.7, "teacher": str(teacher_dir)},
        "datasets": [{"path": str(chats), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
    }


def test_a_model_beside_the_student(tmp_path, live_config):
    """LoRA, packed, accumulated, checkpointed, evaluated; nothing of the teacher is saved."""
    config = {
        **live_config,
        **PACKED,
        **LORA,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "val_set_size": 6,
        "eval_steps": 3,
        "max_steps": 6,
    }
    run = run_axolotl(tmp_path, config)
    assert run.column("loss")[-1] < run.column("loss")[0]
    assert all(step["distill/teacher_mass"] == 1.0 for step in run.steps)
    assert 0 < run.evaluations[-1]["eval_distill/kl"] < run.evaluations[0]["eval_distill/kl"]
    assert "own logits" not in run.log and "cannot be fused" not in run.log
    with safe_open(run.output / "adapter_model.safetensors", "pt") as saved:
        assert all("lora_" in name for name in saved.keys())  # noqa: SIM118 (it is no mapping)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, live_config):
    """For a model beside the student, and for the student itself in 4 bits."""
    shared = {**live_config, "curriculum_sampling": True, "max_steps": 4, "adam_epsilon": 1e-3}
    shared["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    itself = {**shared, **QLORA, "distill": {"teacher": "self", "alpha": 0.5}}
    plans = {}
    for name, config in {
        "model": shared,
        "self": itself,
    }.items():
        for processes in (1, 2):
            given = {**config, **shared_by(processes, 4)}
            plans[f"{name}_{processes}"] = Plan(given, processes)
    runs = run_fleet(tmp_path, plans)
    for name in ("model", "self"):
        one, two = runs[f"{name}_1"], runs[f"{name}_2"]
        assert one.code == two.code == 0 and two.inside[0]["processes"] == 2
        for key in ("loss", "grad_norm", "distill/kl"):
            ones, twos = ([step[key] for step in run.inside[0]["steps"]] for run in (one, two))
            assert twos == pytest.approx(ones, rel=2e-3, abs=1e-6), (name, key)
    kl = [step["distill/kl"] for step in runs["self_1"].inside[0]["steps"]]
    assert abs(kl[0]) < 1e-6 < kl[-1]


@dataclass(frozen=True)
class Strategy:
    """How the student is spread, what of it learns, and whether the teacher is shared."""

    keys: dict[str, Any]
    student: str = "full"
    shared: bool = True
    block: dict[str, Any] = field(default_factory=dict)


STRATEGIES = {
    "fsdp2": Strategy(fsdp2(cpu_ram_efficient_loading=True)),
    "fsdp2_whole": Strategy(fsdp2(), shared=False, block={"sharded": False}),
    "fsdp2_lora": Strategy(fsdp2(), "lora_head"),
    "zero2": Strategy(zero(2), shared=False),
    "zero3": Strategy(zero(3)),
    "zero3_lora": Strategy(zero(3), "lora_head"),
    "ddp": Strategy({}, block={"sharded": True}),
}


@pytest.fixture(scope="module")
def spread(tmp_path_factory, tiny_llama_dir, teacher_dir, tiny_model):
    """Rows as tokens: of a step's four, one process has some that teach nothing, and once none
    that does."""
    folder = tmp_path_factory.mktemp("spread")
    rows = random_rows(tiny_model().tokenizer, [20 + (37 * i) % 61 for i in range(16)], seed=11)
    for index in (3, 5, 7, 10):
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "base_model": str(tiny_llama_dir),
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "datasets": [{"path": str(folder / "rows.jsonl"), "type": None}],
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,
    }
    students = {"full": {}, "lora_head": LORA_HEAD}

    def plan(keys, student, processes, **block):
        teacher = {"teacher": {"model": str(teacher_dir), **block}, "divergence": "reverse_kl"}
        config = {**shared, **students[student], **keys, **shared_by(processes, 4)}
        config["distill"] = {"alpha": 0.7, **teacher}
        return Plan(config, processes, as_gpus=bool(keys) and processes > 1)

    plans = {name: plan({}, name, 1) for name in students}
    for name, it in STRATEGIES.items():
        plans[name] = plan(it.keys, it.student, 2, **it.block)
    return run_fleet(folder, plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_however_the_student_is_spread(spread, name):
    """The losses and norms of one process, with a teacher that is shared by both or whole."""
    strategy = STRATEGIES[name]
    run, one = spread[name], spread[strategy.student]
    assert run.code == one.code == 0
    assert ("the teacher's layers are shared by 2 processes" in run.log) is strategy.shared
    assert "NOT TESTED" not in run.log
    first, second = run.inside
    assert first["processes"] == 2 and first["steps"] == second["steps"]
    tokens = [sum(seen > 0 for seen in inside["tokens"]) for inside in (first, second)]
    assert tokens[0] != tokens[1]
    for step, like in zip(first["steps"], one.inside[0]["steps"], strict=True):
        assert step.pop("grad_norm") == pytest.approx(like["grad_norm"], rel=1e-4)
        # One process pads the four rows to one length, and its teacher rounds otherwise.
        assert step.pop("distill/entropy") == pytest.approx(like["distill/entropy"], rel=2e-5)
        assert step == pytest.approx({key: like[key] for key in step}, rel=2e-6)
