"""The real Axolotl, where the student writes what it learns from."""

import pytest
from support.axolotl_run import Plan, run_axolotl, run_fleet
from support.strategies import LORA, fsdp2, zero
from support.sums import write_sums

pytestmark = pytest.mark.axolotl


@pytest.fixture(scope="module")
def on_policy_config(tmp_path_factory, tiny_model, tiny_llama_dir):
    """LoRA with dropout, packed, accumulated, checkpointed; half of the steps on its own text."""
    folder = tmp_path_factory.mktemp("on-policy")
    teacher = tiny_model(seed=1)
    teacher.save_pretrained(folder / "teacher")
    teacher.tokenizer.save_pretrained(folder / "teacher")
    write_sums(folder / "chats.jsonl")
    return {
        **LORA,
        "lora_dropout": 0.3,
        "base_model": str(tiny_llama_dir),
        "distill": {
            "teacher": str(folder / "teacher"),
            "divergence": "reverse_kl",
            "alpha": 1.0,
            "on_policy": {"lmbda": 0.5, "max_new_tokens": 12},
        },
        "datasets": [{"path": str(folder / "chats.jsonl"), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "sample_packing": True,
        "attn_implementation": "sdpa",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "num_epochs": 8,
        "max_steps": 6,
    }


def test_half_of_the_steps_learn_from_its_own_text(tmp_path, on_policy_config):
    evaluated = {"val_set_size": 6, "eval_steps": 3}
    evaluated["distill"] = {**on_policy_config["distill"]}
    evaluated["distill"]["on_policy"] = {**evaluated["distill"]["on_policy"], "evaluate": 3}
    run = run_axolotl(tmp_path, {**on_policy_config, **evaluated})
    for seen in run.evaluations:
        assert 1 <= seen["eval_rollout_length"] <= 12 and 0 <= seen["eval_rollout_overlap"] <= 1
        assert seen["eval_rollout_kl"] > 0 and seen["eval_rollout_kl"] != seen["eval_distill/kl"]
    assert len(run.evaluations) >= 2
    drawn = [step["rollout/own_text"] for step in run.steps]
    assert len(drawn) == 6 and set(drawn) == {0.0, 1.0}
    for step, own in zip(run.steps, drawn, strict=True):
        assert ("rollout/overlap" in step) is ("rollout/kl" in step)
        assert ("rollout/kl" in step) is ("rollout/length" in step) is (own == 1.0)
        if own:
            assert step["rollout/kl"] == step["distill/kl"] and 1 <= step["rollout/length"] <= 12
    assert "step | tokens | end " in run.log and "| prompt " in run.log
    for step in run.steps[1:]:
        shares = [step[f"rollout/{part}share"] for part in ("", "teacher_", "update_")]
        assert sum(shares) == pytest.approx(1.0, abs=0.01) and min(shares[1:]) > 0


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, on_policy_config):
    """To the last bit: what is written follows from the step, and no draw of it from another. Not
    packed, for which rows Axolotl packs together after a resume is its own affair."""
    config = {**on_policy_config, "sample_packing": False, "micro_batch_size": 2}
    saved = {"save_strategy": "steps", "save_steps": 3}
    whole = run_axolotl(tmp_path / "whole", {**config, **saved})
    checkpoint = {"resume_from_checkpoint": str(whole.output / "checkpoint-3")}
    resumed = run_axolotl(tmp_path / "resumed", {**config, **checkpoint})
    (all_steps,), (later,) = whole.inside, resumed.inside
    assert len(all_steps["steps"]) == 6 and all_steps["steps"][3:] == later["steps"]
    assert all_steps["tokens"][-len(later["tokens"]) :] == later["tokens"]
    assert {step["rollout/own_text"] for step in whole.steps} == {0.0, 1.0}
    assert any(step["rollout/own_text"] for step in resumed.steps)
    kept = (run.output / "adapter_model.safetensors" for run in (whole, resumed))
    first, second = (path.read_bytes() for path in kept)
    assert first == second


@pytest.mark.slow
def test_two_processes_write_each_its_own_and_learn_as_one(tmp_path, on_policy_config):
    config = {**on_policy_config, "gradient_accumulation_steps": 1}
    run = run_axolotl(tmp_path, config, processes=2)
    one, two = run.inside
    assert one["processes"] == 2 and one["wrapper"] == "DistributedDataParallel"
    # One loss and one gradient, of unlike texts.
    assert [s["grad_norm"] for s in one["steps"]] == [s["grad_norm"] for s in two["steps"]]
    assert one["tokens"] != two["tokens"] and len(one["tokens"]) == len(two["tokens"])


@pytest.mark.slow
@pytest.mark.parametrize("student", ["lora", "full"])
def test_a_student_that_is_sharded_writes_what_ddp_s_does(tmp_path, on_policy_config, student):
    """Each process its own text, some of them longer: the same tokens, losses and norms."""
    config = {
        **on_policy_config,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "lora_dropout": 0.0,
        "adam_epsilon": 1e-3,
    }
    if student == "full":
        config = {key: value for key, value in config.items() if "lora" not in key}
        del config["adapter"]
    spreads = {"FSDP": fsdp2(), "ZeRO-2": zero(2), "ZeRO-3": zero(3)}
    plans = {name: Plan({**config, **keys}, 2, as_gpus=True) for name, keys in spreads.items()}
    runs = run_fleet(tmp_path, {"ddp": Plan(config, 2), **plans})
    assert all(run.code == 0 for run in runs.values())
    for name in spreads:
        for ours, other in zip(runs[name].inside, runs["ddp"].inside, strict=True):
            assert other["wrapper"] == "DistributedDataParallel"
            assert ours["kind"] == ("FSDP" if name == "FSDP" else "DEEPSPEED")
            assert ours["tokens"] == other["tokens"], name
            for step, like in zip(ours["steps"], other["steps"], strict=True):
                # The one thing that is not logged of a student in parts.
                like = {k: v for k, v in like.items() if k in step or k != "distill/overlap"}
                assert step == pytest.approx(like, rel=1e-4), name
        one, two = runs[name].inside
        assert one["tokens"] != two["tokens"]
        in_parts = name != "ZeRO-2"
        assert ("the teacher's layers are shared by 2" in runs[name].log) is in_parts
        assert ("distill/overlap" in one["steps"][0]) is not in_parts
    assert set(runs["FSDP"].inside[0]["head_held"]) == {49152 * 32}
