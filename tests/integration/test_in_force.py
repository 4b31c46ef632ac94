"""What trains is what the config says, or the run stops with what did it."""

import logging
from importlib import import_module
from types import SimpleNamespace
from typing import ClassVar

import pytest
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.prompt_strategies import load as load_type
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model
from support.losses import attach, settings
from torch import nn

from axolotl_distill import DistillPlugin
from axolotl_distill.errors import ConfigError
from axolotl_distill.host import compat
from axolotl_distill.host.checks import other_plugins
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.findings import enforce
from axolotl_distill.host.in_force import check_processes, check_trainer, check_wrapped
from axolotl_distill.host.trainer import AxolotlDistillTrainer

pytestmark = pytest.mark.axolotl

ROWS = SimpleNamespace(column_names=["input_ids", "labels", "teacher_pos"])
PUBLIC = ["axolotl_distill.store", "axolotl_distill.chat", "axolotl_distill.trajectories"]


@pytest.fixture
def trainer(tiny_model, tokenizer):
    """Our trainer as a run builds it, without the many seconds that building it takes."""
    model = tiny_model()
    attach(model, settings(tokenizer))
    found = AxolotlDistillTrainer.__new__(AxolotlDistillTrainer)
    collator = TeacherCollator(
        tokenizer, base_cls=DataCollatorForSeq2Seq, packed=False, stores=[], temperature=2.0
    )
    found.model = found.model_wrapped = model
    found.args = SimpleNamespace(n_gpu=0, average_tokens_across_devices=True)
    found.compute_loss_func = found.label_smoother = found.eval_dataset = None
    found.data_collator = found.eval_data_collator = collator
    found.train_dataset = ROWS
    found.accelerator = SimpleNamespace(
        num_processes=1,
        distributed_type="NO",
        parallelism_config=None,
        unwrap_model=lambda model, **_: model,
        state=SimpleNamespace(fsdp_plugin=None),
    )
    return found


def test_ours_is_accepted(trainer):
    check_trainer(trainer, ["a store"])
    check_wrapped(trainer)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("compute_loss_func", len, "`compute_loss_func` .builtins.len"),
        ("label_smoother", object(), "`label_smoother`"),
        ("compute_loss", print, "`compute_loss` of the trainer was replaced by builtins.print"),
        ("data_collator", DataCollatorForSeq2Seq(None), "`data_collator` is .*Seq2Seq"),
        ("train_dataset", SimpleNamespace(column_names=["input_ids"]), "have no `teacher_pos`"),
    ],
)
def test_another_loss_or_other_batches(trainer, name, value, message):
    setattr(trainer, name, value)
    with pytest.raises(ConfigError, match=message):
        check_trainer(trainer, ["a store"])


def test_another_collator_of_the_evaluation(trainer):
    trainer.eval_data_collator = DataCollatorForSeq2Seq(None)
    check_trainer(trainer, [])
    trainer.eval_dataset = ROWS
    with pytest.raises(ConfigError, match="`eval_data_collator` is"):
        check_trainer(trainer, [])


def test_another_trainer():
    with pytest.raises(ConfigError, match=r"trained by types\.SimpleNamespace"):
        check_trainer(SimpleNamespace(), [])


def test_a_forward_that_was_patched_afterwards(trainer):
    own = trainer.model.forward
    trainer.model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(ConfigError, match=r"`forward` of LlamaForCausalLM is .*lambda"):
        check_trainer(trainer, [])
    # Accelerate's mixed precision does this, and is known.
    trainer.model._original_forward = own
    check_trainer(trainer, [])


def test_replicas_that_do_not_know_of_each_other(trainer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were launched.*counts 1"):
        check_processes(trainer)
    trainer.accelerator.num_processes = 2
    check_processes(trainer)
    with pytest.raises(ConfigError, match="whose gradients nothing synchronises"):
        check_wrapped(trainer)
    trainer.args.average_tokens_across_devices = False
    with pytest.raises(ConfigError, match="average_tokens_across_devices"):
        check_processes(trainer)


@pytest.mark.parametrize(
    "zero, said",
    [
        ({"stage": 2}, None),
        ({"stage": 3, "offload_param": {"device": "none"}}, None),
        ({"stage": 0}, "DeepSpeed ZeRO stage 0 is NOT TESTED"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, "`offload_param` is NOT TESTED"),
        ({"stage": 3, "zero_hpz_partition_size": 8}, "`zero_hpz_partition_size` is NOT TESTED"),
    ],
)
def test_what_no_run_was_held_to_is_said(trainer, caplog, zero, said):
    class Engine(nn.Linear):
        config: ClassVar = {"zero_optimization": zero}

        def zero_optimization_stage(self):
            return zero["stage"]

    trainer.accelerator.distributed_type = "DEEPSPEED"
    trainer.model_wrapped = Engine(2, 2)
    with caplog.at_level("WARNING"):
        check_wrapped(trainer)
    assert said in caplog.text if said else not caplog.text


def test_fsdp2_in_8_bits_is_said(trainer, caplog):
    class Linear8bitLt(nn.Linear):
        pass

    trainer.accelerator.distributed_type = "FSDP"
    trainer.model.lm_head.weight.full_tensor = None
    with caplog.at_level("WARNING"):
        check_wrapped(trainer)
        assert not caplog.text
        trainer.model.extra = Linear8bitLt(2, 2)
        check_wrapped(trainer)
    assert "a model in 8 bits is NOT TESTED" in caplog.text


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size", "ep_size"])
def test_parallelism_that_no_key_spoke_of(trainer, name):
    trainer.accelerator.parallelism_config = SimpleNamespace(dp_shard_size=2, **{name: 2})
    with pytest.raises(ConfigError, match=f"`{name}: 2` is in force"):
        check_processes(trainer)


@pytest.mark.parametrize(
    "seen, message",
    [
        ({"processes": 4}, "in 4 processes .MULTI_GPU., and the student in 2 parts: .*Launch 2"),
        ({"kind": "FSDP"}, r"in 2 processes .FSDP."),
        ({"tp_size": 1}, "`tp_size: 1` is in force, and the student is in 2 parts"),
        ({"num_key_value_heads": 1}, "`num_key_value_heads: 1` .*cannot be shared by 2"),
        ({"plan": "replicated_with_grad_allreduce"}, "of the kind replicated_with_grad_allreduce"),
        ({"adapter": True}, "with an adapter, of which each process would train another"),
        ({}, None),
    ],
)
def test_a_student_in_parts(trainer, monkeypatch, seen, message):
    accelerator, model = trainer.accelerator, trainer.model
    monkeypatch.setenv("WORLD_SIZE", str(seen.get("processes", 2)))
    accelerator.num_processes = seen.get("processes", 2)
    accelerator.distributed_type = seen.get("kind", "MULTI_GPU")
    accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=2)
    accelerator.parallelism_config = SimpleNamespace(tp_size=seen.get("tp_size", 2))
    model._tp_size = 2
    if "num_key_value_heads" in seen:
        model.config.num_key_value_heads = 1
    if "plan" in seen:
        model._tp_plan = {"model.layers.*.self_attn.q_norm": seen["plan"]}
    if "adapter" in seen:
        trainer.model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    if message is None:
        check_processes(trainer)
        return
    with pytest.raises(ConfigError, match=message):
        check_processes(trainer)


def test_fsdp1_and_data_parallel_and_a_spread_model(trainer):
    trainer.accelerator.distributed_type = "FSDP"
    trainer.accelerator.state.fsdp_plugin = SimpleNamespace(fsdp_version=1)
    with pytest.raises(ConfigError, match="FSDP1 is in force"):
        check_processes(trainer)
    trainer.accelerator.distributed_type = "NO"
    trainer.model.hf_device_map = {"model.layers.0": 0, "lm_head": 1}
    with pytest.raises(ConfigError, match="spreads the student over 0, 1"):
        check_processes(trainer)
    trainer.args.n_gpu = 2
    with pytest.raises(ConfigError, match="One process sees 2 GPUs"):
        check_processes(trainer)


@pytest.mark.parametrize("main", [True, False])
def test_only_the_main_process_says_what_objectives_warn_of(monkeypatch, caplog, main):
    monkeypatch.setattr(compat, "is_main_process", lambda: main)
    name = "axolotl_distill.objectives"
    try:
        compat.quiet_other_ranks(name)
        logging.getLogger(f"{name}.student").warning("slower")
    finally:
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert ("slower" in caplog.text) == main


class OtherTrainer(BasePlugin):
    def get_trainer_cls(self, cfg):
        return SimpleNamespace(__name__="TheirTrainer") if cfg.theirs else None

    def get_collator_cls_and_kwargs(self, cfg, is_eval=False):
        return None, None


@pytest.mark.parametrize("first", [True, False])
def test_another_plugins_trainer_before_and_after_ours(monkeypatch, first):
    plugins = {"theirs.Plugin": OtherTrainer(), "axolotl_distill": DistillPlugin()}
    order = sorted(plugins, reverse=first)
    monkeypatch.setattr(
        PluginManager.get_instance(), "plugins", {name: plugins[name] for name in order}
    )
    with pytest.raises(ConfigError, match=r"theirs\.Plugin` brings TheirTrainer"):
        enforce(other_plugins(DictDefault(theirs=True), DistillPlugin))
    if first:
        with pytest.raises(ConfigError, match="must come after axolotl_distill"):
            enforce(other_plugins(DictDefault(), DistillPlugin))
    else:
        enforce(other_plugins(DictDefault(), DistillPlugin))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_type_of_ours_without_the_plugin(name, tokenizer):
    with pytest.raises(ConfigError, match=rf"{name}.*plugins: \[axolotl_distill\]"):
        load_type(name, tokenizer, DictDefault(), DictDefault(path="x", type=name))
    assert callable(import_module(name).load)


def test_the_private_name_of_a_store_without_the_plugin(tokenizer):
    name = "axolotl_distill.host.datasets.store"
    with pytest.raises(ConfigError, match="does not turn on"):
        load_type(name, tokenizer, DictDefault(), DictDefault(path="x", type=name))


@pytest.mark.parametrize(
    "cfg, message",
    [
        ({"distil": {"alpha": 0.5}}, "`distil:` is not a key.*`distill:`"),
        ({"Distillation": {}}, "`Distillation:` is not a key"),
        ({"distill": None}, "`distill:` is empty"),
        ({"datasets": [{"path": "s", "type": PUBLIC[0]}]}, "needs a `distill:` block"),
        ({"test_datasets": [{"path": "s", "type": PUBLIC[2]}]}, "needs a `distill:` block"),
    ],
)
def test_no_block(cfg, message):
    with pytest.raises(ConfigError, match=message):
        DistillPlugin().register(DictDefault(cfg))


def test_no_block_and_nothing_of_ours_is_left_alone():
    DistillPlugin().register(DictDefault(dataset_prepared_path="x", datasets=[{"type": "alpaca"}]))
