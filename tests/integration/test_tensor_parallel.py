"""Two processes hold one student in parts and train what one process does: the real Axolotl, with
`tensor_parallel_size`.

The processes are what accelerate takes for GPUs (support/fleet.py); the meshes, DTensors and
reductions are real. Batches are the same in both, one step has no token at all.
"""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.axolotl_run import Plan, run_fleet
from support.stores import capture_rows, random_rows

pytestmark = pytest.mark.axolotl

EMPTY = range(6, 12)
HEAD = 49152 * 64
SPLIT = {"tensor_parallel_size": 2}
STEPS = {"micro_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model, tiny_llama_dir):
    """What the runs share, by where the teacher is."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    tokenizer = tiny_model().tokenizer
    rows = random_rows(tokenizer, [20 + (37 * i) % 81 for i in range(24)], seed=11)
    for index in EMPTY:
        rows[index]["labels"] = [-100] * len(rows[index]["labels"])
    store = capture_rows(folder / "store", lambda: tiny_model(seed=1), rows, k=16)
    texts = folder / "rows.jsonl"
    seen = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    texts.write_text("\n".join(json.dumps(row) for row in seen))
    teacher = tiny_model(seed=1, hidden_size=32)
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    shared = {
        "base_model": str(tiny_llama_dir),
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "learning_rate": 1e-2,
        # So that a rounding error is not made a step of its own where the gradient is all but zero.
        "adam_epsilon": 1e-3,
        **STEPS,
    }
    from_store = {
        **shared,
        "datasets": [{"path": str(store), "type": "axolotl_distill.store"}],
        "distill": {"alpha": 0.7, "temperature": 2.0},
    }
    live = {
        **shared,
        "datasets": [{"path": str(texts), "ds_type": "json", "type": None}],
        "test_datasets": [{"path": str(texts), "ds_type": "json", "type": None}],
        "eval_strategy": "steps",
        "eval_steps": 3,
        "distill": {
            "alpha": 0.7,
            "divergence": "adaptive_kl",
            "label_smoothing": 0.1,
            "teacher": {"model": str(folder / "teacher")},
        },
    }
    return folder, from_store, live


def check(run, one) -> None:
    """The same steps in both processes as in one, with half of the head in each; and the same
    weights saved whole."""
    assert run.code == 0 and one.code == 0
    assert len(run.inside) == 2
    (alone,) = one.inside
    for inside in run.inside:
        assert inside["processes"] == 2 and inside["kind"] == "MULTI_GPU"
        assert set(inside["head_held"]) == {HEAD // 2}
        assert inside["sharded"] == inside["parameters"] == alone["parameters"]
        assert inside["tokens"] == alone["tokens"]
        assert len(inside["steps"]) == len(alone["steps"]) == STEPS["max_steps"]
        for step, like in zip(inside["steps"], alone["steps"], strict=True):
            norm = pytest.approx(like["grad_norm"], rel=2e-6)
            assert step == {
                name: norm if name == "grad_norm" else pytest.approx(value, rel=1e-6)
                for name, value in like.items()
            }
    ours, theirs = (load_file(it.output / "model.safetensors") for it in (run, one))
    start = load_file(f"{base_model(one)}/model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert (ours[name] - tensor).norm() < 3e-5 * (tensor - start[name]).norm(), name
    assert "distributed_config" not in json.loads((run.output / "config.json").read_text())


def base_model(run) -> str:
    return yaml.safe_load((run.output.parent / "config.yml").read_text())["base_model"]


def test_two_parts_train_what_one_process_does(base):
    folder, from_store, _ = base
    kept = {"save_strategy": "steps", "save_steps": 3, "save_only_model": True}
    runs = run_fleet(
        folder,
        {"one": Plan(from_store), "split": Plan({**from_store, **SPLIT, **kept}, 2, True)},
    )
    check(runs["split"], runs["one"])
    assert runs["one"].inside[0]["steps"][1] == {"loss": 0.0, "grad_norm": 0.0}
    # A checkpoint's weights are whole, too: those of the last step.
    checkpoint = load_file(runs["split"].output / "checkpoint-3/model.safetensors")
    final = load_file(runs["split"].output / "model.safetensors")
    assert checkpoint.keys() == final.keys()
    assert all(torch.equal(checkpoint[name], final[name]) for name in final)


@pytest.mark.slow
def test_a_live_teacher_and_an_evaluation(base):
    folder, _, live = base
    runs = run_fleet(
        folder, {"live_one": Plan(live), "live_split": Plan({**live, **SPLIT}, 2, True)}
    )
    check(runs["live_split"], runs["live_one"])
    ours, theirs = (runs[name].evaluations for name in ("live_split", "live_one"))
    assert len(ours) == len(theirs) >= 1
    for seen, like in zip(ours, theirs, strict=True):
        for name in ("eval_loss", "eval_distill/ce", "eval_distill/kd"):
            assert seen[name] == pytest.approx(like[name], rel=1e-3), name  # as they are printed
