"""Loads the model that a YAML names, on one device or spread over several."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, modeling_utils
from transformers.integrations import accelerate as placing

from axolotl_distill.config.teacher import ModelArgs, TeacherArgs
from axolotl_distill.teachers.sharded import spread_layers

CANNOT_LOAD = (OSError, ValueError, ImportError, RuntimeError)
"""What transformers, accelerate, peft and bitsandbytes raise for a model that they cannot load."""
ADAPTER_CONFIG = "adapter_config.json"
FSDP_LOADS_ONCE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Of accelerate: other processes than the first get no weights, and wait for FSDP's."""
ASK_FOR_ZERO3: tuple[Any, ...] = (modeling_utils, placing)


def load_causal_lm(teacher: TeacherArgs) -> PreTrainedModel:
    """The model in evaluation mode, with its adapter.

    An adapter is merged into the weights; into quantised ones it is not, for they would be rounded
    again: there it runs beside them.

    `model` may itself be the folder that training with an adapter leaves; its base is loaded then.
    Raises CANNOT_LOAD.
    """
    name, adapter, options = teacher.model, teacher.adapter, loading_options(teacher)
    if teacher.sharded:
        options["device_map"] = {"": "cpu"}
    if adapter is None and (base := _base_of(name)) is not None:
        adapter, name = name, base["base_model_name_or_path"]
        if base.get("revision"):
            options["revision"] = base["revision"]
    with apart_from_the_student():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options)
        if adapter is not None:
            model = _with_adapter(model, adapter, merged=teacher.quantization is None)
    model.eval()
    if teacher.sharded:
        spread_layers(model, resolve_device(teacher.device))
    return model


@contextmanager
def apart_from_the_student() -> Iterator[None]:
    """While it lasts a model is loaded whole, in every process. What shards the student would have
    transformers load a part of it, or nothing at all, for an engine that will never see it."""
    efficient = os.environ.pop(FSDP_LOADS_ONCE, None)
    # Axolotl puts a function of its own there, which says that ZeRO-3 is on.
    asked = [(module, module.is_deepspeed_zero3_enabled) for module in ASK_FOR_ZERO3]
    for module in ASK_FOR_ZERO3:
        module.is_deepspeed_zero3_enabled = lambda: False
    try:
        yield
    finally:
        for module, is_enabled in asked:
            module.is_deepspeed_zero3_enabled = is_enabled
        if efficient is not None:
            os.environ[FSDP_LOADS_ONCE] = efficient


def loading_options(args: ModelArgs) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: where and as what a model's weights are loaded."""
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    options = {
        **args.origin,
        "dtype": dtype,
        "device_map": args.device_map or {"": resolve_device(args.device)},
    }
    if args.quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
        # LLM.int8() multiplies in float16, and says so for every layer of every batch.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    elif args.quantization == "4bit":
        # What is multiplied is in `dtype`; for "auto" bitsandbytes follows its input.
        compute = {} if dtype == "auto" else {"bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", **compute
        )
    return options


def beside(teacher: TeacherArgs, student: PreTrainedModel) -> TeacherArgs:
    """`teacher` on the student's device, where its block leaves the choice."""
    chosen = teacher.device != "auto" or teacher.device_map is not None
    if chosen or student.device.type in ("cpu", "meta"):
        return teacher
    return teacher.model_copy(update={"device": str(student.device)})


def resolve_device(device: str) -> str:
    """`device`; for "auto" the accelerator where one can be used, else "cpu"."""
    if device != "auto":
        return device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else "cpu"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where token ids are looked up, and where the logits come back.

    A model that is spread has no device of its own, and of a part that waits on the CPU or on disk
    until it is called only accelerate's hook knows where it will run.
    """
    embedding: Any = model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


def explain(error: Exception) -> str:
    """The error of a load, and what helps where the model was too large."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"{error} A model larger than one device takes `device_map: auto`, `quantization`."
    return str(error)


def _base_of(name: str) -> dict[str, Any] | None:
    """What an adapter's folder says of its base. Axolotl leaves a config.json beside the adapter,
    which transformers takes for a model whose weights are missing."""
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG).is_file() or any(folder.glob("model*.safetensors")):
        return None
    return json.loads((folder / ADAPTER_CONFIG).read_bytes())


def _with_adapter(model: PreTrainedModel, adapter: str, *, merged: bool) -> PreTrainedModel:
    from peft import PeftModel

    adapted: Any = PeftModel.from_pretrained(model, adapter)
    if adapted.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{adapter} is a {adapted.active_peft_config.peft_type.value} adapter, which stands "
            "before the text and is in no weight. Use one that changes weights, such as LoRA."
        )
    # Within the adapted model its base has the adapter's layers already.
    return adapted.merge_and_unload() if merged else adapted.get_base_model()
