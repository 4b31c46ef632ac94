"""The real Axolotl, where a server that is given the student's weights writes what is learnt
from."""

import pytest
from support.axolotl_run import run_axolotl
from support.faulty_server import FaultyServer
from support.lora_server import FullServer, LoraServer
from support.strategies import LORA
from support.sums import write_sums

pytestmark = pytest.mark.axolotl
STEPS = 4


@pytest.fixture(scope="module")
def served_config(tmp_path_factory, tiny_model, tiny_llama_dir):
    """LoRA with dropout, packed, accumulated; all of the steps on its own text."""
    folder = tmp_path_factory.mktemp("served")
    write_sums(folder / "chats.jsonl")
    return {
        **LORA,
        "lora_dropout": 0.3,
        "base_model": str(tiny_llama_dir),
        "distill": {
            "teacher": "self",
            "divergence": "reverse_kl",
            "on_policy": {"lmbda": 1.0, "max_new_tokens": 6, "truncated": "keep"},
        },
        "datasets": [{"path": str(folder / "chats.jsonl"), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "sample_packing": True,
        "attn_implementation": "sdpa",
        "micro_batch_size": 1,
        "gradient_checkpointing": True,
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "num_epochs": 8,
        "max_steps": STEPS,
    }


def served(config, url, **changes):
    on_policy = {**config["distill"]["on_policy"], **changes}
    on_policy["server"] = {"base_url": url, "retries": 1}
    return {**config, "distill": {**config["distill"], "on_policy": on_policy}}


def test_each_step_is_written_with_the_adapter_as_it_is_then(
    tmp_path, served_config, tiny_model, tokenizer
):
    behind = LoraServer(tiny_model(), tokenizer)
    with FaultyServer(behind.handlers) as server:
        run = run_axolotl(tmp_path, served(served_config, server.url))
        asked = [(request.path, request.body) for request in server.requests]
    gaps = run.column("rollout/sync_gap")
    assert len(gaps) == STEPS and max(gaps) < 1e-3
    assert all(1 <= length <= 6 for length in run.column("rollout/length"))
    assert "with a trial adapter" in run.log
    loaded = [body["lora_name"] for path, body in asked if path == "/v1/load_lora_adapter"]
    assert [name.split("-", 3)[3] for name in loaded] == [
        "empty", "trial", *(f"step-{step}" for step in range(1, STEPS + 1))
    ]  # fmt: skip
    # Nothing is left, on the server or on the disk.
    assert list(behind.models) == ["student"]
    assert not list((run.output / "rollout-adapters").iterdir())


def test_a_server_with_other_weights_ends_the_run_before_a_step(
    tmp_path, served_config, tiny_model, tokenizer
):
    behind = LoraServer(tiny_model(seed=1), tokenizer)
    with FaultyServer(behind.handlers) as server:
        run = run_axolotl(tmp_path, served(served_config, server.url), check=False)
    assert run.code and not run.steps
    assert "is not the student's base model" in run.log


def full(config, url, teacher):
    """All weights instead of an adapter."""
    plain = {key: value for key, value in config.items() if key not in LORA and "lora" not in key}
    plain["distill"] = {**plain["distill"], "teacher": str(teacher)}
    return served({**plain, "learning_rate": 1e-3}, url)


def test_each_step_is_written_with_all_weights_as_they_are_then(
    tmp_path, served_config, tiny_model, tiny_llama_dir, tokenizer
):
    """The server had other weights at first; nobody's run but this one's is in it."""
    behind = FullServer(tiny_model(seed=1), tokenizer)
    with FaultyServer(behind.handlers) as server:
        run = run_axolotl(tmp_path, full(served_config, server.url, tiny_llama_dir))
    gaps = run.column("rollout/sync_gap")
    assert len(gaps) == STEPS and max(gaps) < 1e-3
    assert "with trial ones" in run.log
    assert [name.split("-", 3)[3] for name in behind.reloads] == [
        "first", "trial", *(f"step-{step}" for step in range(1, STEPS + 1))
    ]  # fmt: skip
    assert not list((run.output / "rollout-weights").iterdir())
    grads = [step["grad_norm"] for step in run.inside[0]["steps"]]
    assert min(grads) > 0.0


def test_a_server_that_skips_weights_ends_the_run_before_a_step(
    tmp_path, served_config, tiny_model, tiny_llama_dir, tokenizer
):
    behind = FullServer(tiny_model(), tokenizer, skips=True)
    with FaultyServer(behind.handlers) as server:
        given = full(served_config, server.url, tiny_llama_dir)
        run = run_axolotl(tmp_path, given, check=False)
    assert run.code and not run.steps
    assert "still has other weights" in run.log


@pytest.mark.slow
def test_two_processes_write_with_one_adapter(tmp_path, served_config, tiny_model, tokenizer):
    behind = LoraServer(tiny_model(), tokenizer)
    with FaultyServer(behind.handlers) as server:
        run = run_axolotl(tmp_path, served(served_config, server.url), processes=2)
        asked = [(request.path, request.body) for request in server.requests]
    one, two = run.inside
    assert one["processes"] == 2
    assert [s["grad_norm"] for s in one["steps"]] == [s["grad_norm"] for s in two["steps"]]
    loaded = [body["lora_name"] for path, body in asked if path == "/v1/load_lora_adapter"]
    assert len(loaded) == STEPS + 2 and len(set(loaded)) == len(loaded)
    written = [body for path, body in asked if path == "/v1/completions" and "seed" in body]
    assert {body["model"] for body in written} > {name for name in loaded if "-step-" in name}
    assert max(run.column("rollout/sync_gap")) < 1e-3


@pytest.mark.slow
def test_two_processes_write_with_all_weights(
    tmp_path, served_config, tiny_model, tiny_llama_dir, tokenizer
):
    behind = FullServer(tiny_model(), tokenizer)
    with FaultyServer(behind.handlers) as server:
        given = full(served_config, server.url, tiny_llama_dir)
        run = run_axolotl(tmp_path, given, processes=2)
    assert run.inside[0]["processes"] == 2 and len(behind.reloads) == STEPS + 2
    assert max(run.column("rollout/sync_gap")) < 1e-3


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, served_config, tiny_model, tokenizer):
    config = {**served_config, "sample_packing": False, "micro_batch_size": 2}
    saved = {"save_strategy": "steps", "save_steps": 2}
    behind = LoraServer(tiny_model(), tokenizer)
    with FaultyServer(behind.handlers) as server:
        config = served(config, server.url)
        whole = run_axolotl(tmp_path / "whole", {**config, **saved})
        checkpoint = {"resume_from_checkpoint": str(whole.output / "checkpoint-2")}
        resumed = run_axolotl(tmp_path / "resumed", {**config, **checkpoint})
    (all_steps,), (later,) = whole.inside, resumed.inside
    assert all_steps["steps"][2:] == later["steps"] and len(later["steps"]) == STEPS - 2
