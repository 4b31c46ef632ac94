"""On-policy runs of the real Axolotl, when something goes wrong in the middle."""

import pytest
from support.axolotl_run import run_axolotl
from support.faulty_server import FaultyServer
from support.model_server import ModelServer
from support.strategies import LORA
from support.sums import write_sums

pytestmark = [pytest.mark.axolotl, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llama_dir):
    """Short and long prompts, one of them almost empty."""
    path = tmp_path_factory.mktemp("hostile") / "chats.jsonl"
    write_sums(path, 16, longer=True)
    return {
        **LORA,
        "lora_dropout": 0.3,
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 1.0, "on_policy": {"lmbda": 0.7, "max_new_tokens": 12}},
        "datasets": [{"path": str(path), "type": "chat_template"}],
        "excess_length_strategy": "truncate",
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "num_epochs": 8,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
    }


def adapter(run):
    return (run.output / "adapter_model.safetensors").read_bytes()


def test_a_server_that_dies_in_mid_run_and_comes_back(tmp_path, tiny_model, config):
    """The run ends with what to do, and what it then does is what it would have done."""
    model = tiny_model(seed=1)
    served = ModelServer(model, model.tokenizer)
    dead_from = tmp_path / "cut" / "out" / "checkpoint-2"
    down = True

    def faults(number, path, body):
        return "close" if down and dead_from.exists() else None

    with FaultyServer(served.handlers, faults) as server:
        reached = {"base_url": server.url, "engine": "vllm", "retries": 1, "timeout": 10.0}
        teacher = {"model": "teacher", "server": reached}
        config = {**config, "distill": {**config["distill"], "teacher": teacher, "k": 8}}
        whole = run_axolotl(tmp_path / "whole", config)
        cut = run_axolotl(tmp_path / "cut", config, check=False)
        assert cut.code and "resume_from_checkpoint" in cut.log
        assert "does not answer" in cut.log and len(cut.steps) == 2
        assert not (cut.output / "checkpoint-3").exists()
        down = False
        resumed = run_axolotl(
            tmp_path / "resumed", {**config, "resume_from_checkpoint": str(dead_from)}
        )
    assert whole.inside[0]["steps"][2:] == resumed.inside[0]["steps"]
    assert adapter(whole) == adapter(resumed)


def test_a_packed_run_goes_on(tmp_path, tiny_model, config):
    """To the last bit, where its rows come in the data's order: shuffled, Axolotl packs others
    together after a resume."""
    model = tiny_model(seed=1)
    model.save_pretrained(tmp_path / "teacher")
    model.tokenizer.save_pretrained(tmp_path / "teacher")
    config = {
        **config,
        "distill": {**config["distill"], "teacher": str(tmp_path / "teacher")},
        "sample_packing": True,
        "attn_implementation": "sdpa",
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "curriculum_sampling": True,
    }
    whole = run_axolotl(tmp_path / "whole", config)
    checkpoint = str(whole.output / "checkpoint-2")
    resumed = run_axolotl(tmp_path / "resumed", {**config, "resume_from_checkpoint": checkpoint})
    (first,), (later,) = whole.inside, resumed.inside
    assert first["steps"][2:] == later["steps"]
    assert first["tokens"][-len(later["tokens"]) :] == later["tokens"]
    assert adapter(whole) == adapter(resumed)
