"""What a server that is to write could not do is refused before a model is read, and said so."""

import shutil

import pytest
from support.faulty_server import FaultyServer
from support.lora_server import FullServer, LoraServer, student
from support.model_types import tiny

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError, ServerError
from axolotl_distill.host.served_rollouts import (
    check_adapter,
    check_rollout_server,
    served_base,
    served_findings,
)

LORA = {"adapter": "lora", "lora_r": 8, "lora_target_linear": True}
ASKED = parse_distill({"teacher": "m", "on_policy": {"server": {"base_url": "http://h/v1"}}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": "llama-adapter"}, "LoRA adapters, or all weights"),
        ({"peft_use_dora": True}, "no DoRA"),
        ({"fsdp_config": {"reshard_after_forward": True}}, "weights that are sharded"),
        ({"lora_modules_to_save": ["embed_tokens"]}, "no whole modules"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, "embeddings or the head"),
        ({"lora_target_modules": "embed_tokens"}, "embeddings or the head"),
        ({"lora_target_parameters": ["experts"]}, "adapter of parameters"),
        ({"peft_trainable_token_indices": [1]}, "single rows"),
        ({"peft_init_lora_weights": "pissa"}, "as it was published"),
        ({"peft": {"loftq_config": {"loftq_bits": 4}}}, "as it was published"),
    ],
)
def test_what_vllm_does_not_take(changes, said):
    (found,) = served_findings({**LORA, **changes}, ASKED)
    assert said in str(found)
    assert not list(served_findings(LORA, ASKED))
    assert not list(served_findings({}, parse_distill({"teacher": "m", "on_policy": {}})))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"load_in_8bit": True}, "all weights are sent"),
        ({"load_in_4bit": True}, "all weights are sent"),
        ({"qat": {"weight_dtype": "int8"}}, "other weights than the trainer"),
        ({"fp8": True}, "another precision"),
        ({"deepspeed": "zero3.json"}, "weights that are sharded"),
        ({"fsdp_config": {"reshard_after_forward": True}}, "weights that are sharded"),
        ({"resize_token_embeddings_to_32x": True}, "as many embeddings"),
        ({"tokens": ["<new>"]}, "as many embeddings"),
    ],
)
def test_a_student_whose_weights_are_not_sent(changes, said):
    (found,) = served_findings({"adapter": None, **changes}, ASKED)
    assert said in str(found)
    # What is said of adapters is nothing to a student without one.
    assert not list(served_findings({"lora_modules_to_save": ["embed_tokens"]}, ASKED))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "lora_only"}, "bias: lora_only"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": r".*(q_proj|lm_head)"}, "embeddings or the head"),
        ({"target_modules": ["embed_tokens"]}, "embeddings or the head"),
    ],
)
def test_an_adapter_that_vllm_does_not_take(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_adapter(student(**changes))
    check_adapter(student())


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"server": {}}, "base_url.*is required"),
        ({"server": {"base_url": "http://h/v1", "engine": "sglang"}}, "must be one of|vllm"),
        ({"server": {"base_url": "http://h/v1"}, "batch_size": 8}, "server.concurrency"),
        ({"server": {"base_url": "http://h/v1", "tolerance": 0}}, "greater than 0"),
        ({"server": {"base_url": "http://h/v1", "folder": "x"}}, "unknown key"),
    ],
)
def test_blocks_that_cannot_be(block, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill({"teacher": "m", "on_policy": block})


def test_a_server_that_is_not_in_development_mode(tmp_path, tiny_llama_dir, tokenizer):
    behind = FullServer(tiny("llama"), tokenizer)
    with FaultyServer(behind.handlers) as server:
        cfg, args = asked(tmp_path, tiny_llama_dir, server)
        cfg["adapter"] = None
        check_rollout_server(cfg, args)
        # Asked without a weight: a server that finds none is left with nothing.
        assert not behind.reloads and not list((tmp_path / "rollout-weights").iterdir())
        del server.handlers["/reset_prefix_cache"]
        with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1 vllm serve"):
            check_rollout_server(cfg, args)
        (tmp_path / "file").touch()
        cfg, args = asked(tmp_path, tiny_llama_dir, server, adapters=str(tmp_path / "file"))
        cfg["adapter"] = None
        with pytest.raises(ConfigError, match=r"cannot be written.*server\.adapters"):
            check_rollout_server(cfg, args)


class Settings(dict):
    __getattr__ = dict.get


@pytest.mark.parametrize(
    ("changes", "about", "said"),
    [
        ({"max_rank": 4}, {}, "--max-lora-rank"),
        ({"context": 50}, {}, "--max-model-len 60"),
        ({}, {"model": "nobody"}, "serves student"),
        ({}, {"adapters_there": "/not/there"}, "adapters_there"),
    ],
)
def test_a_server_that_could_not_serve_is_refused_before_a_model_is_read(
    tmp_path, tiny_llama_dir, tokenizer, changes, about, said
):
    behind = LoraServer(tiny("llama"), tokenizer, **changes)
    with FaultyServer(behind.handlers) as server:
        cfg, args = asked(tmp_path, tiny_llama_dir, server, **about)
        with pytest.raises((ConfigError, ServerError), match=said):
            check_rollout_server(cfg, args)
        assert not list(tmp_path.rglob("adapter*"))


def test_a_server_that_takes_no_adapters(tmp_path, tiny_llama_dir, tokenizer):
    behind = LoraServer(tiny("llama"), tokenizer)
    with FaultyServer(behind.handlers) as server:
        cfg, args = asked(tmp_path, tiny_llama_dir, server)
        check_rollout_server(cfg, args)
        assert served_base(args.on_policy.server, "x") == ("student", 512)
        del server.handlers["/v1/load_lora_adapter"]
        with pytest.raises(ServerError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            check_rollout_server(cfg, args)
    shutil.rmtree(tmp_path / "rollout-adapters")


def asked(folder, base, server, **about):
    cfg = Settings(
        base_model=str(base), tokenizer_config=str(base), sequence_len=60,
        output_dir=str(folder), special_tokens=None, **LORA,
    )  # fmt: skip
    block = {"server": {"base_url": server.url, "retries": 0, **about}}
    return cfg, parse_distill({"teacher": "m", "on_policy": block})
