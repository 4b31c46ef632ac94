"""The real Axolotl, with everything a user combines distillation with. Each run is a process."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.axolotl_run import run_axolotl
from support.stores import capture_rows, random_rows

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
LORA_HEAD = {**LORA, "lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]}
JSD = {
    "alpha": 0.7,
    "temperature": 2.0,
    "divergence": "jsd",
    "beta": 0.3,
    "label_smoothing": 0.1,
}
SPYING = ["axolotl_distill", "support.spy_plugin.SpyPlugin"]
METRICS = ("distill/ce", "distill/teacher_mass", "distill/top1_agreement")


def learns(run, divergence="distill/kl"):
    """Metrics are there and finite, and the loss goes down. Only a KL is logged as one."""
    for step in run.steps:
        for name in (divergence, *METRICS):
            assert step[name] == step[name], name
        assert 0 < step["distill/teacher_mass"] <= 1
    losses = run.column("loss")
    assert sum(losses[-2:]) < sum(losses[:2])
    return run


@pytest.mark.parametrize(
    "name, extra",
    [
        ("full", {}),
        ("plugin_class", {"plugins": ["axolotl_distill.DistillPlugin"]}),
        ("workers", {"dataloader_num_workers": 2}),
        ("lora", LORA),
        ("qlora", {**LORA, "adapter": "qlora", "load_in_4bit": True, "plugins": SPYING}),
        ("packed_sdpa", PACKED),
        ("packed_eager_lora", {**PACKED, **LORA_HEAD, "attn_implementation": "eager"}),
        ("checkpointing", {"gradient_checkpointing": True, "distill": JSD}),
        pytest.param("compiled", {"torch_compile": True}, marks=pytest.mark.slow),
        ("streaming", {"streaming": True, "micro_batch_size": 4}),
        ("streaming_packed", {**PACKED, "streaming": True, "micro_batch_size": 4}),
        pytest.param("bf16", {"bf16": True}, marks=pytest.mark.slow),
    ],
)
def test_trains(tmp_path, config, name, extra):
    steps = 12 if "streaming" in name else 5
    run = run_axolotl(tmp_path, {**config, **extra, "max_steps": steps})
    learns(run, "distill/kd" if extra.get("distill") is JSD else "distill/kl")
    assert len(run.steps) == steps
    # ppl is the perplexity of the cross-entropy, not of the mixture.
    for step in run.steps:
        assert step["ppl"] == pytest.approx(math.exp(step["distill/ce"]), rel=2e-2)
    if name == "qlora":
        # Seven projections in each of two layers, and the head left alone.
        assert "spy: 4-bit layers 14" in run.log
    assert "own logits" not in run.log
    if name == "lora":
        assert (run.output / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "divergence", ["reverse_kl", "skew_forward_kl", "skew_reverse_kl", "tvd", "adaptive_kl"]
)
def test_other_divergences_train(tmp_path, config, divergence):
    distill = {"alpha": 0.7, "temperature": 2.0, "divergence": divergence}
    run = run_axolotl(tmp_path, {**config, "distill": distill, "max_steps": 5})
    learns(run, "distill/kd" if divergence in ("tvd", "adaptive_kl") else "distill/kl")


def test_own_store_has_no_divergence(tmp_path, config, own_store):
    """Through Axolotl's packing, too: the first step's KL to itself is zero."""
    config["datasets"] = [{"path": str(own_store), "type": "axolotl_distill.store"}]
    run = run_axolotl(tmp_path, {**config, **PACKED, "max_steps": 1})
    assert abs(run.steps[0]["distill/kl"]) < 1e-4
    assert run.steps[0]["distill/top1_agreement"] > 0.99


def test_accumulation_is_weighted_by_tokens(tmp_path, config):
    """Two micro-batches of unlike token counts give the step that one batch of both gives."""
    config = {**config, "max_steps": 2, "shuffle_merged_datasets": False}
    config["curriculum_sampling"] = True
    whole = run_axolotl(tmp_path / "whole", {**config, "micro_batch_size": 2})
    split = run_axolotl(
        tmp_path / "split",
        {**config, "micro_batch_size": 1, "gradient_accumulation_steps": 2},
    )
    for name in ("loss", "grad_norm", "distill/kl", "distill/ce"):
        assert split.column(name) == pytest.approx(whole.column(name), rel=2e-3), name


def test_two_processes_are_one_batch(tmp_path, config):
    """DDP: gradients are synchronised, and ranks with unlike token counts weigh by tokens."""
    config = {**config, "max_steps": 3, "curriculum_sampling": True}
    one = run_axolotl(tmp_path / "one", {**config, "micro_batch_size": 2})
    two = run_axolotl(tmp_path / "two", {**config, "micro_batch_size": 1}, processes=2)
    assert two.ranks == 2
    for name in ("loss", "grad_norm", "distill/kl", "distill/ce"):
        assert two.column(name) == pytest.approx(one.column(name), rel=2e-3), name


def test_evaluation(tmp_path, config):
    run = run_axolotl(
        tmp_path,
        {**config, **PACKED, "val_set_size": 8, "eval_steps": 2, "max_steps": 4},
    )
    assert len(run.evaluations) >= 2
    first, last = run.evaluations[0], run.evaluations[-1]
    for name in METRICS:
        assert f"eval_{name}" in first
    mixture = 0.3 * last["eval_distill/ce"] + 0.7 * 4 * last["eval_distill/kl"]
    assert last["eval_loss"] == pytest.approx(mixture, rel=1e-3)
    assert last["eval_ppl"] == pytest.approx(math.exp(last["eval_distill/ce"]), rel=2e-2)


def test_resumes_as_if_uninterrupted(tmp_path, config):
    config = {**config, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = run_axolotl(tmp_path / "whole", config)
    checkpoint = whole.output / "checkpoint-3"
    resumed = run_axolotl(
        tmp_path / "resumed", {**config, "resume_from_checkpoint": str(checkpoint)}
    )
    assert len(resumed.steps) == 3
    for name in ("loss", "grad_norm", "distill/kl"):
        assert resumed.column(name) == pytest.approx(whole.column(name)[3:], rel=1e-4), name
    for name, tensor in load_file(whole.output / "model.safetensors").items():
        other = load_file(resumed.output / "model.safetensors")[name]
        torch.testing.assert_close(other, tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_mixture_of_stores_and_chats(tmp_path, config, tiny_model):
    """Two stores, chats without a teacher, and a stock dataset type, shuffled and truncated."""
    other = capture_rows(
        tmp_path / "other",
        lambda: tiny_model(seed=2),
        random_rows(tiny_model().tokenizer, [60, 90, 40]),
        k=5,
    )
    chats = tmp_path / "chats.jsonl"
    turns = [
        {"role": "user", "content": "Say a number."},
        {"role": "assistant", "content": "Seven, or any other number that you like."},
    ]
    chats.write_text((json.dumps({"messages": turns}) + "\n") * 12)
    config["datasets"] += [
        {"path": str(other), "type": "axolotl_distill.store"},
        {"path": str(chats), "type": "axolotl_distill.chat"},
        {"path": str(chats), "type": "chat_template", "roles_to_train": ["assistant"]},
    ]
    run = run_axolotl(
        tmp_path,
        {
            **config,
            **PACKED,
            "sequence_len": 64,
            "excess_length_strategy": "truncate",
            "max_steps": 6,
        },
    )
    # A step may hold chats only; then there is no divergence to report.
    assert any("distill/kl" in step for step in run.steps)
    assert all(step["loss"] == step["loss"] and step["distill/ce"] > 0 for step in run.steps)


def test_a_store_captured_again_is_read_again(tmp_path, config, tiny_model, rows, own_store):
    """Axolotl's cache key knows the path only; ours knows what is in the store."""
    folder = tmp_path / "replaced"
    capture_rows(folder, lambda: tiny_model(seed=3), rows, k=16)
    config["datasets"] = [{"path": str(folder), "type": "axolotl_distill.store"}]
    before = run_axolotl(tmp_path, {**config, "max_steps": 1})
    folder.rename(tmp_path / "old")
    capture_rows(folder, tiny_model, rows, k=16)
    after = run_axolotl(tmp_path, {**config, "max_steps": 1})
    assert before.steps[0]["distill/kl"] > 0.1
    assert abs(after.steps[0]["distill/kl"]) < 1e-4
