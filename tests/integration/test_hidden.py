"""The real Axolotl with hidden states of a live teacher beside its logits."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.axolotl_run import run_axolotl
from support.stores import random_rows
from support.strategies import LORA

from axolotl_distill.host.hidden import FILE

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}


@pytest.fixture
def config(tmp_path, tiny_model, tiny_llama_dir):
    """A student of width 64 and a teacher of 96, and chats."""
    import json

    teacher = tiny_model(seed=1, hidden_size=96, num_hidden_layers=3)
    teacher.save_pretrained(tmp_path / "teacher")
    teacher.tokenizer.save_pretrained(tmp_path / "teacher")
    rows = random_rows(teacher.tokenizer, [20 + (37 * i) % 61 for i in range(24)], seed=11)
    with (tmp_path / "chats.jsonl").open("w") as file:
        for row in rows:
            text = teacher.tokenizer.decode(row["input_ids"][:30])
            turns = [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {
            "alpha": 0.7,
            "teacher": str(tmp_path / "teacher"),
            "hidden_states": {"pairs": 2, "weight": 0.5, "learning_rate": 0.05},
        },
        "datasets": [{"path": str(tmp_path / "chats.jsonl"), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    }


# Not packed: a resumed run that packs was seen to draw other packs, whatever the loss.
def test_it_is_resumed_as_if_uninterrupted_and_leaves_no_trace_in_the_model(tmp_path, config):
    saved = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = run_axolotl(tmp_path / "whole", {**config, **saved})
    hidden = whole.column("distill/hidden")
    assert hidden[-1] < 0.9 * hidden[0]
    half, end = (whole.output / f"checkpoint-{step}" for step in (3, 6))
    resumed = run_axolotl(
        tmp_path / "resumed", {**config, **saved, "resume_from_checkpoint": str(half)}
    )
    for name in ("loss", "distill/kl", "distill/hidden"):
        assert resumed.column(name) == pytest.approx(whole.column(name)[3:], rel=1e-5), name
    projections = [load_file(at / FILE) for at in (half, end, resumed.output / "checkpoint-6")]
    assert {name: tensor.shape for name, tensor in projections[0].items()} == {
        "0": (96, 64),
        "1": (96, 64),
    }
    for name, tensor in projections[1].items():
        torch.testing.assert_close(projections[2][name], tensor, rtol=1e-5, atol=1e-6)
        # At the rate of the projections, and not at the run's, which is a fiftieth of it.
        assert (tensor - projections[0][name]).abs().amax() > 0.02
    with (
        safe_open(whole.output / "model.safetensors", "pt") as made,
        safe_open(f"{config['base_model']}/model.safetensors", "pt") as plain,
    ):
        assert set(made.keys()) == set(plain.keys())


@pytest.mark.slow
def test_beside_an_adapter(tmp_path, config):
    run = run_axolotl(
        tmp_path / "run", {**config, **LORA, **PACKED, "save_strategy": "steps", "save_steps": 3}
    )
    assert run.column("distill/hidden")[-1] < run.column("distill/hidden")[0]
    at = run.output / "checkpoint-3"
    assert len(load_file(at / FILE)) == 2
    with safe_open(at / "adapter_model.safetensors", "pt") as saved:
        assert all("lora_" in name for name in saved.keys())  # noqa: SIM118 (it is no mapping)
