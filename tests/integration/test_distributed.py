"""Several processes train what one does: the real Axolotl, with DDP, FSDP2 and DeepSpeed.

The same six rows a step, whatever the processes; one step without a token, and one in which a
process has none. A run is looked into from inside (support/run_spy.py), and held to the run of one
process by each step's loss and norm, and by what is saved.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.axolotl_run import DEEPSPEED, Plan, Run, run_fleet
from support.stores import capture_rows, random_rows
from support.strategies import LORA, LORA_HEAD, QLORA, example, fsdp2, shared_by, zero
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.axolotl

EMPTY = (3, *range(6, 12), 13, 15, 17)
"""Rows that supervise nothing: a whole step, and then all that the second of two processes has."""
HEAD = 49152 * 64
OFFLOADED = fsdp2(
    reshard_after_forward=False,
    offload_params=True,
    cpu_offload_pin_memory=False,  # which a CPU has not
    state_dict_type="SHARDED_STATE_DICT",
    final_state_dict_type="FULL_STATE_DICT",
)


@dataclass(frozen=True)
class Case:
    """A strategy, what is trained (`like` names the run of one process), and what is in force."""

    strategy: dict[str, Any]
    like: str
    kind: str
    seen: dict[str, Any] = field(default_factory=dict)
    processes: int = 2
    rows: int = 6
    """Of a step, over all processes."""
    head: int = HEAD // 2
    """Numbers of the head's weight that a process holds between steps."""


FSDP = {"wrapper": "FSDPLlamaForCausalLM", "reshards": [True], "offloaded": "OffloadPolicy"}
FSDP_LORA = {**FSDP, "wrapper": "FSDPPeftModelForCausalLM"}
DDP = {"wrapper": "DistributedDataParallel"}
ZERO2, ZERO3 = ({"wrapper": "DeepSpeedEngine", "stage": stage} for stage in (2, 3))
FOUR_BITS = {"four_bits": 14}
GATHERED_LAYERS = {**FSDP, "reshards": [False], "offloaded": "CPUOffloadPolicy"}
BY_SIZE = fsdp2(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=100_000)

QUICK = {
    "fsdp2": Case(fsdp2(), "full", "FSDP", FSDP),
    "fsdp2_lora": Case(fsdp2(), "lora_head", "FSDP", FSDP_LORA),
}
SLOW = {
    "ddp": Case({}, "full", "MULTI_CPU", DDP, head=HEAD),
    "ddp_lora": Case({}, "lora_head", "MULTI_CPU", DDP, head=HEAD),
    "ddp_qlora": Case({}, "qlora", "MULTI_CPU", {**DDP, **FOUR_BITS}, head=HEAD),
    "fsdp2_offloaded": Case(OFFLOADED, "full", "FSDP", GATHERED_LAYERS),
    "fsdp2_by_size": Case(BY_SIZE, "full", "FSDP", FSDP),
    "fsdp2_tied": Case(fsdp2(cpu_ram_efficient_loading=True), "tied", "FSDP", FSDP),
    "fsdp2_by_three": Case(fsdp2(), "full", "FSDP", FSDP, processes=3, head=HEAD // 3),
    "fsdp2_in_groups": Case(
        example("full-fsdp2-two-nodes", dp_shard_size=2), "full", "FSDP", FSDP, processes=4, rows=12
    ),
    "fsdp2_layers_lora": Case(fsdp2(), "lora", "FSDP", FSDP_LORA),
    "fsdp2_qlora": Case(example("qlora-fsdp2"), "qlora", "FSDP", {**FSDP_LORA, **FOUR_BITS}),
    "zero1": Case(zero(1), "full", "DEEPSPEED", {**ZERO2, "stage": 1}, head=HEAD),
    "zero2": Case(zero(2), "full", "DEEPSPEED", ZERO2, head=HEAD),
    "zero2_lora": Case(zero(2), "lora_head", "DEEPSPEED", ZERO2, head=HEAD),
    "zero2_qlora": Case(zero(2), "qlora", "DEEPSPEED", {**ZERO2, **FOUR_BITS}, head=HEAD),
    "zero3": Case(zero(3), "full", "DEEPSPEED", ZERO3, head=0),
    "zero3_example": Case(example("full-zero3"), "full", "DEEPSPEED", ZERO3, head=0),
    "zero3_tied": Case(zero(3), "tied", "DEEPSPEED", ZERO3, head=0),
    "zero3_lora": Case(zero(3), "lora_head", "DEEPSPEED", ZERO3, head=0),
    "zero3_qlora": Case(zero(3), "qlora", "DEEPSPEED", {**ZERO3, **FOUR_BITS}, head=0),
}
RESUMED = {
    "fsdp2_by_3": (fsdp2(), 3),
    "fsdp2_sharded_by_3": (OFFLOADED, 3),
    "zero3_by_2": (zero(3), 2),
    "zero3_by_3": (zero(3), 3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model, tiny_llama_dir):
    """The config that all share, and the one that each kind of student adds to it."""
    folder = tmp_path_factory.mktemp("distributed")
    rows = random_rows(tiny_model().tokenizer, [20 + (37 * i) % 81 for i in range(24)], seed=11)
    for index in EMPTY:
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    store = capture_rows(folder / "store", lambda: tiny_model(seed=1), rows, k=16)
    tied = tiny_model(tie_word_embeddings=True)
    tied.save_pretrained(folder / "tied")
    tied.tokenizer.save_pretrained(folder / "tied")
    shared = {
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 0.7, "temperature": 2.0},
        "datasets": [{"path": str(store), "type": "axolotl_distill.store"}],
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "max_steps": 4,
        "learning_rate": 1e-2,
        # So that a rounding error is not made a step of its own where the gradient is all but zero.
        "adam_epsilon": 1e-3,
    }
    students = {
        "full": {},
        "lora": LORA,
        "lora_head": LORA_HEAD,
        "qlora": QLORA,
        "tied": {"base_model": str(folder / "tied")},
    }
    return folder, shared, students


def plan_of(base, case: Case, **changes: Any) -> Plan:
    _, shared, students = base
    config = {
        **shared,
        **students[case.like],
        **case.strategy,
        **shared_by(case.processes, case.rows),
    }
    as_gpus = case.processes > 1 and bool(case.strategy)
    return Plan({**config, **changes}, case.processes, as_gpus)


def one_of(case: Case) -> str:
    """The run of one process that it is held to."""
    return f"{case.like}_of_{case.rows}"


def run(base, cases: dict[str, Case]) -> dict[str, Run]:
    """Each case, and one process for every kind of student in them."""
    wanted = {
        one_of(case): Case({}, case.like, "NO", processes=1, rows=case.rows)
        for case in cases.values()
    }
    plans = {name: plan_of(base, case) for name, case in {**wanted, **cases}.items()}
    return run_fleet(base[0], plans)


@pytest.fixture(scope="module")
def quick(base):
    return run(base, QUICK)


@pytest.fixture(scope="module")
def slow(base):
    assert DEEPSPEED.is_dir(), "run `make test-slow`, which installs DeepSpeed there"
    return run(base, SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_processes_train_what_one_does(quick, name):
    check(QUICK[name], quick[name], quick[one_of(QUICK[name])])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_strategy_trains_what_one_process_does(slow, name):
    check(SLOW[name], slow[name], slow[one_of(SLOW[name])])


@pytest.fixture(scope="module")
def resumed(base):
    """Two processes save after two of four steps; others go on from there."""
    two = {"fsdp2": fsdp2(), "fsdp2_sharded": OFFLOADED, "zero3": zero(3)}
    plans = {"full": plan_of(base, Case({}, "full", "NO", processes=1))}
    for name, strategy in two.items():
        plans[name] = plan_of(base, Case(strategy, "full", ""), save_strategy="steps", save_steps=2)
    for name, (strategy, processes) in RESUMED.items():
        saved = base[0] / name.removesuffix(f"_by_{processes}") / "out/checkpoint-2"
        case = Case(strategy, "full", "", processes=processes)
        plans[name] = plan_of(base, case, resume_from_checkpoint=str(saved))
    return run_fleet(base[0], plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp2_by_3", "fsdp2_sharded_by_3", "zero3_by_2"])
def test_a_checkpoint_goes_on_in_other_processes(resumed, name):
    """FSDP2's in any number of them."""
    run, one = resumed[name], resumed["full"]
    assert run.code == 0
    assert {inside["processes"] for inside in run.inside} == {RESUMED[name][1]}
    assert_steps(run, one.inside[0]["steps"][2:])
    assert_saved(run, one)


@pytest.mark.slow
def test_deepspeed_refuses_another_number_of_processes(resumed):
    run = resumed["zero3_by_3"]
    assert run.code and not run.inside
    assert "used a DP world size of 2 but the current world size is 3" in run.log


def check(case: Case, run: Run, one: Run) -> None:
    assert run.code == 0 and one.code == 0
    assert "NOT TESTED" not in run.log and "own logits" not in run.log
    assert len(run.inside) == case.processes
    for inside in run.inside:
        assert inside["processes"] == case.processes and inside["kind"] == case.kind
        assert case.seen.items() <= inside.items()
        whole = inside["kind"] == "MULTI_CPU" or inside.get("stage") in (1, 2)
        assert inside["sharded"] == (0 if whole else inside["parameters"])
        # Gathered for the loss, and given back.
        assert set(inside["head_held"]) == {case.head}
    if case.processes == 2:
        tokens = [inside["tokens"] for inside in run.inside]
        assert [sum(mine[6:9]) > 0 for mine in tokens] == [True, False]
    assert_steps(run, one.inside[0]["steps"])
    assert_saved(run, one)


def assert_steps(run: Run, expected: list[dict[str, float]]) -> None:
    (steps, *others) = [inside["steps"] for inside in run.inside]
    assert all(other == steps for other in others)
    assert len(steps) == len(expected)
    for step, like in zip(steps, expected, strict=True):
        # torch adds up 3 million squares of fp32, each shard by itself.
        norm, expected_norm = step.pop("grad_norm"), like["grad_norm"]
        assert norm == pytest.approx(expected_norm, rel=5e-5)
        assert step == pytest.approx({n: v for n, v in like.items() if n != "grad_norm"}, rel=1e-6)


def assert_saved(run: Run, one: Run) -> None:
    """The same names and types, and weights that differ by a hundred-thousandth of the way they
    went; an adapter, of itself."""
    ours, theirs = saved(run), saved(one)
    if "lm_head.weight" not in theirs and "lm_head.weight" in ours:
        # Under FSDP2 Axolotl writes a tied head under both names.
        assert torch.equal(ours.pop("lm_head.weight"), ours["model.embed_tokens.weight"])
    assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
        n: (t.shape, t.dtype) for n, t in theirs.items()
    }
    start = {}
    if (run.output / "model.safetensors").exists():
        start = AutoModelForCausalLM.from_pretrained(base_model(one)).state_dict()
    for name, tensor in theirs.items():
        moved = (tensor - start.get(name, torch.zeros(()))).norm()
        assert moved > 0, name
        assert (ours[name] - tensor).norm() < 1e-5 * moved, name


def saved(run: Run) -> dict[str, torch.Tensor]:
    (path,) = run.output.glob("*model.safetensors")
    # PEFT also writes the frozen head that an adapter is on; Axolotl, under FSDP2, does not.
    return {name: it for name, it in load_file(path).items() if "base_layer" not in name}


def base_model(run: Run) -> str:
    return yaml.safe_load((run.output.parent / "config.yml").read_text())["base_model"]
