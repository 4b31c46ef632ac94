"""What is in force once the trainer stands: whose loss, whose batches, how many processes.

A config says what was asked for. Other plugins, the launcher's environment and Axolotl's own
defaults decide too, so the trainer itself is asked before it takes its first step.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from axolotl.utils.logging import get_logger
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.compat import tensor_parallel_ranks
from axolotl_distill.host.parallelism import EXPERTS, FSDP1, SEQUENCE, WITH_DDP
from axolotl_distill.host.trainer import AxolotlDistillTrainer
from axolotl_distill.objectives.forward import has_distill_forward
from axolotl_distill.signal.batch import POINTERS
from axolotl_distill.store import TeacherStore

LOG = get_logger(__name__)
REMEDY = (
    "Only one of two can train this run: remove the plugin or key that brings it, or the "
    "`distill:` block."
)
SPLITS = {
    "cp_size": SEQUENCE,
    "sp_size": SEQUENCE,
    "ep_size": EXPERTS,
}
STYLES = {"colwise", "rowwise", "colwise_gather_output", "colwise_rep"}
"""Of transformers' plans, those with which a loss was held to that of one process; the last two are
two names of one."""
ZERO_NOT_TRIED = (
    "offload_optimizer",
    "offload_param",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "mics_shard_size",
)


class InForce(TrainerCallback):
    """Looks again when training begins: the model is wrapped, and every plugin had its turn."""

    def __init__(self, trainer: Any, stores: Sequence[TeacherStore]):
        self.trainer, self.stores = trainer, stores

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        check_trainer(self.trainer, self.stores)
        check_wrapped(self.trainer)


def check_trainer(trainer: Any, stores: Sequence[TeacherStore]) -> None:
    """Raises ConfigError unless the loss, the batches and the forward of this trainer are ours, and
    its processes are one run on which the loss is right."""
    _check_loss(trainer)
    _check_batches(trainer, stores)
    _check_forward(trainer)
    check_processes(trainer)


def _check_loss(trainer: Any) -> None:
    if not isinstance(trainer, AxolotlDistillTrainer):
        raise ConfigError(
            f"`distill:` is set, but the run would be trained by {_name(type(trainer))}, with its "
            f"own loss and no teacher. {REMEDY}"
        )
    for name in ("compute_loss_func", "label_smoother"):
        if getattr(trainer, name, None) is not None:
            raise ConfigError(
                f"The trainer has a `{name}` ({_name(getattr(trainer, name))}), which replaces the "
                f"distillation loss. {REMEDY}"
            )
    replaced = vars(trainer).get("compute_loss")
    if replaced is not None:
        raise ConfigError(
            f"`compute_loss` of the trainer was replaced by {_name(replaced)}: what it does to the "
            f"distillation loss is not known. {REMEDY}"
        )


def _check_batches(trainer: Any, stores: Sequence[TeacherStore]) -> None:
    collators = {"data_collator": trainer.data_collator}
    if trainer.eval_dataset is not None:
        collators["eval_data_collator"] = trainer.eval_data_collator
    for name, collator in collators.items():
        if not isinstance(collator, TeacherCollator):
            raise ConfigError(
                f"The trainer's `{name}` is {_name(type(collator))} and not axolotl-distill's: its "
                f"batches would bring no teacher, and only text would be learnt. {REMEDY}"
            )
    columns = getattr(trainer.train_dataset, "column_names", None)
    if stores and columns is not None and POINTERS.name not in columns:
        raise ConfigError(
            f"The training rows ({', '.join(columns)}) have no `{POINTERS.name}`, though "
            "`datasets` names a store: they were not made of it, and no token would meet its "
            "record. Remove the plugin that brings rows of its own, and delete "
            "`dataset_prepared_path`."
        )


def _check_forward(trainer: Any) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not has_distill_forward(causal_lm):
        raise ConfigError(
            f"`forward` of {type(causal_lm).__name__} is {_name(causal_lm.forward)}: something "
            f"patched it after axolotl-distill had, and the loss would be another. {REMEDY}"
        )
    # Accelerate's mixed precision keeps what it wraps as `_original_forward`.
    if (
        model is not causal_lm
        and "forward" in vars(model)
        and "_original_forward" not in vars(model)
    ):
        raise ConfigError(
            f"`forward` of {type(model).__name__}, around the student, was replaced by "
            f"{_name(model.forward)}: what it does to the loss is not known. {REMEDY}"
        )


def check_processes(trainer: Any) -> None:
    """Raises ConfigError for processes that do not train one model, or not with the right loss."""
    accelerator, args = trainer.accelerator, trainer.args
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched (WORLD_SIZE), but each of them would train alone: "
            f"accelerate counts {accelerator.num_processes} ({accelerator.distributed_type}). On "
            "GPUs use `accelerate launch`; on a CPU, `ACCELERATE_USE_CPU=true torchrun "
            "--nproc_per_node N -m axolotl.cli.train CONFIG.yml`, without DeepSpeed and FSDP."
        )
    if args.n_gpu > 1:
        raise ConfigError(
            f"One process sees {args.n_gpu} GPUs and would copy the model to each (DataParallel), "
            "where the distillation forward is not copied along. Start one process for each GPU, "
            "with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
        )
    spread = set(map(str, (getattr(trainer.model, "hf_device_map", None) or {}).values()))
    if len(spread) > 1:
        raise ConfigError(
            f"`device_map` spreads the student over {', '.join(sorted(spread))}; the loss needs "
            "its head and its hidden states on one device. Start one process for each GPU, with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    for name, why in SPLITS.items():
        ways = getattr(parallelism, name, None) or 1
        if ways > 1:
            raise ConfigError(f"`{name}: {ways}` is in force: {why}. {WITH_DDP}")
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "FSDP" and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise ConfigError("FSDP1 is in force: " + " ".join(FSDP1))
    if kind == "MEGATRON_LM":
        raise ConfigError(
            "Megatron-LM is in force: it cuts the output head over ranks by layers of its own, "
            f"which the loss cannot read. {WITH_DDP}"
        )
    check_tensor_parallelism(trainer, kind)
    if accelerator.num_processes > 1 and not args.average_tokens_across_devices:
        raise ConfigError(
            "`average_tokens_across_devices` is off, so that ranks with unlike numbers of tokens "
            "would weigh the same. Remove the plugin that sets it."
        )


def check_tensor_parallelism(trainer: Any, kind: str) -> None:
    """Raises ConfigError for a student in parts, unless all processes hold the parts of one, get
    the same batches, and are known to train what one process does."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    of_model = getattr(model, "_tp_size", None) or 1
    of_batches = tensor_parallel_ranks(accelerator)
    if of_model == of_batches == 1:
        return
    what = "`tensor_parallel_size` is in force"
    if of_model != of_batches:
        raise ConfigError(
            f"`tp_size: {of_batches}` is in force, and the student is in {of_model} parts: those "
            "who hold it would not have the same batches. Set `tensor_parallel_size` in the YAML, "
            "and nothing in the launcher's variables or `model_kwargs`."
        )
    if of_model != accelerator.num_processes or kind in ("FSDP", "DEEPSPEED"):
        raise ConfigError(
            f"{what} in {accelerator.num_processes} processes ({kind}), and the student in "
            f"{of_model} parts: no loss of it together with another strategy was held to that of "
            f"one process. Launch {of_model} processes, without FSDP and DeepSpeed."
        )
    if model is not trainer.model and hasattr(trainer.model, "peft_config"):
        raise ConfigError(
            f"{what} with an adapter, of which each process would train another. Remove one of "
            "the two."
        )
    config = model.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None) or of_model
        if heads % of_model:
            raise ConfigError(
                f"{what}, and `{name}: {heads}` of a {type(model).__name__} cannot be shared by "
                f"{of_model} processes. Set it to a divisor."
            )
    unlike = sorted(set((model.tp_plan or {}).values()) - STYLES)
    if unlike:
        raise ConfigError(
            f"{what}, and the plan of a {type(model).__name__} has layers of the kind "
            f"{', '.join(unlike)}, with which no loss was held to that of one process. {WITH_DDP}"
        )


def check_wrapped(trainer: Any) -> None:
    """Raises ConfigError when the model of several processes is wrapped by nothing that
    synchronises its gradients. Says when that is something that no test compares with one
    process."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1 and accelerator.distributed_type not in ("FSDP", "DEEPSPEED"):
        return
    model = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    if isinstance(model, DistributedDataParallel):
        return
    if hasattr(model, "zero_optimization_stage"):
        unlike = _zero_not_tried(model)
    elif any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        unlike = _fsdp2_not_tried(model)
    else:
        raise ConfigError(
            f"{accelerator.num_processes} processes train a {type(model).__name__} whose gradients "
            f"nothing synchronises ({accelerator.distributed_type}). {WITH_DDP}"
        )
    if unlike:
        LOG.warning(
            f"axolotl-distill: {unlike} is NOT TESTED; without it, the same run was held to one "
            "process. Compare `loss` and `grad_norm` of the first steps with those of DDP or of "
            "one process."
        )


def _zero_not_tried(engine: Any) -> str | None:
    stage = engine.zero_optimization_stage()
    if stage not in (1, 2, 3):
        return f"DeepSpeed ZeRO stage {stage}"
    zero = engine.config["zero_optimization"]
    used = [key for key in ZERO_NOT_TRIED if _is_used(zero.get(key))]
    return f"DeepSpeed's `{'`, `'.join(used)}`" if used else None


def _is_used(setting: Any) -> bool:
    if isinstance(setting, Mapping):
        return setting.get("device", "none") != "none"
    return setting not in (None, False, 1, -1)


def _fsdp2_not_tried(model: Any) -> str | None:
    if any(type(module).__name__ == "Linear8bitLt" for module in model.modules()):
        return "FSDP2 with a model in 8 bits"
    return None


def _name(thing: Any) -> str:
    """Where something comes from, as a user finds it again."""
    thing = getattr(thing, "func", thing)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
