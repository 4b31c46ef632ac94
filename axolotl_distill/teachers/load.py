"""Loads a causal language model from a folder or the hub; a trained adapter counts as one."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_causal_lm(
    path: str, *, dtype: str, device: str, trust_remote_code: bool
) -> PreTrainedModel:
    """The model in evaluation mode.

    dtype     "auto" is the checkpoint's
    device    "auto" is the accelerator where there is one

    The folder that Axolotl leaves after training with LoRA holds a config.json beside the adapter
    and no weights, which transformers takes for a broken model: there the base is loaded and the
    adapter merged into it. Raises what transformers and peft raise: OSError, ValueError.
    """
    options = {
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "trust_remote_code": trust_remote_code,
    }
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors")):
        from peft import AutoPeftModelForCausalLM

        model = AutoPeftModelForCausalLM.from_pretrained(path, **options).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    return model.to(resolve_device(device)).eval()


def resolve_device(device: str) -> str:
    """`device`; for "auto" the accelerator where one can be used, else "cpu"."""
    if device != "auto":
        return device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else "cpu"
