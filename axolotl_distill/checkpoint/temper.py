"""A copy of a model whose distribution at T = 1 is the original's at T: softmax(z / T).

A server grades text at T = 1 whatever it is asked for, so a teacher at another temperature is
another checkpoint. Logits are linear in what the last norm gives, so that its weight (and bias)
divided by T divides them by T, and a head's bias is divided with it; a model with a scale of its
logits in its config has that changed instead. Which of these a model needs is tried on the model
itself, and what was written is loaded and compared with the original before it gets its name.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from axolotl_distill.checkpoint.card import TemperNote, write_temper_card
from axolotl_distill.checkpoint.folder import CONFIG, Checkpoint, copy_files, new_folder
from axolotl_distill.checkpoint.measure import Logits, loaded, measured
from axolotl_distill.checkpoint.tensors import (
    INDEX,
    StoredTensor,
    json_of,
    tensors_of,
    write_file,
    write_json,
)
from axolotl_distill.errors import CheckpointError
from axolotl_distill.teachers.fingerprint import weights_of

NOTE = "temper.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
# By these a config divides its logits, or multiplies them.
DIVISOR, FACTOR = "logits_scaling", "logit_scale"
# Of logits, relative to the largest: what rounding in fp32 explains, and a fault does not.
CLOSE = 1e-4


@dataclass(frozen=True)
class Change:
    """What the copy has otherwise: keys of its config, tensors of its files."""

    config: dict[str, float]
    tensors: dict[str, StoredTensor]
    widened: list[str]
    """Tensors that are stored in fp32, since their old type would round them"""

    def said(self) -> list[str]:
        return [f"config.json: {key}" for key in self.config] + [
            f"{name} (in fp32)" if name in self.widened else name for name in self.tensors
        ]


def temper(
    original: Checkpoint, temperature: float, out: str, *, device: str = "cpu", link: bool = False
) -> TemperNote:
    """Writes the copy and returns its note.

    device  where the model is loaded, twice, one after the other, to be compared; "auto" spreads it
    link    weights that stay as they are become hard links

    Raises CheckpointError where the logits of what was written are not those of the original
    divided by T; nothing is left then.
    """
    _refuse(original, temperature)
    model = loaded(original.folder, device)
    before = measured(model)
    change = _change(original, model, temperature)
    exact_before = before
    if change.widened:
        exact_before = measured(model.float(), before.amplifier)
    del model
    with new_folder(out) as folder:
        _write(original, change, folder, link)
        after = measured(loaded(folder, device), before.amplifier)
        exact_after = after
        if change.widened:
            exact_after = measured(loaded(folder, device, torch.float32), before.amplifier)
        _hold(exact_before, exact_after, temperature, original)
        note = TemperNote(
            original=str(original.folder),
            original_weights=weights_of(str(original.folder)),
            temperature=temperature,
            changed=change.said(),
            error=exact_before.error(exact_after, temperature),
            dtype=str(before.dtype).removeprefix("torch."),
            error_in_dtype=before.error(after, temperature),
            kl_in_dtype=before.kl(after, temperature),
        )
        write_json(folder / NOTE, note.as_json())
        write_temper_card(folder, note, original.folder)
    return note


def _refuse(original: Checkpoint, temperature: float) -> None:
    if not 0 < temperature < float("inf") or temperature == 1:
        raise CheckpointError(
            f"`--temperature {temperature:g}`: it is a number above 0, and 1 is the model as it is."
        )
    config = original.config.get_text_config()
    for key in SOFTCAPS:
        if getattr(config, key, None):
            raise CheckpointError(
                f"{original.folder} ({config.model_type}) caps its logits (`{key}: "
                f"{getattr(config, key):g}`), and nothing before the cap divides what comes out of "
                "it. Capture from the model itself, without a server: a local teacher gives every "
                "temperature."
            )


def _change(original: Checkpoint, model: PreTrainedModel, temperature: float) -> Change:
    config = original.config.get_text_config()
    scales = {
        key: value * temperature if key == DIVISOR else value / temperature
        for key in (DIVISOR, FACTOR)
        if (value := getattr(config, key, None))
    }
    if scales:
        if config is not original.config:
            raise _unlike(original, "its scale of the logits is in a config within its config")
        # One of them is enough.
        key = next(iter(scales))
        return Change({key: scales[key]}, {}, [])
    name, norm = _last_norm(model, original)
    values = _divided_norm(norm, temperature, original)
    new = {f"{name}.{part}": value for part, value in values.items()}
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        place = next(name for name, module in model.named_modules() if module is head)
        new[f"{place}.bias"] = head.bias.double() / temperature
    tensors, widened = {}, []
    for parameter, value in new.items():
        stored = _stored_name(original, model, parameter)
        tensors[stored], is_wider = _packed(value, original.tensors[stored])
        if is_wider:
            widened.append(stored)
    return Change({}, tensors, widened)


def _last_norm(model: PreTrainedModel, original: Checkpoint) -> tuple[str, nn.Module]:
    """The module whose output is what the head is given."""
    seen: dict[str, Any] = {}
    outputs: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and isinstance(getattr(module, "weight", None), Tensor):
                outputs.append((name, module, output))

        return hook

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["input"] = args[0]

    head = model.get_output_embeddings()
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in model.named_modules()
        if module is not head and not any(module.children())
    ]
    handles.append(head.register_forward_pre_hook(keep_input))
    measured(model, amplifier=1.0)
    for handle in handles:
        handle.remove()
    for name, module, output in reversed(outputs):
        given = seen["input"]
        if output is given or (output.shape == given.shape and torch.equal(output, given)):
            return name, module
    raise _unlike(original, "its head is not given what a last norm with a weight gives")


@torch.no_grad()
def _divided_norm(norm: nn.Module, temperature: float, original: Checkpoint) -> dict[str, Tensor]:
    """Its parameters in float64 when its output is divided by T: w / T, or (1 + w) / T - 1 for
    those that multiply by 1 + w, as Gemma's. Which it is, is tried on a random input."""
    own = dict(norm.named_parameters(recurse=False))
    if own.keys() - {"weight", "bias"} or own["weight"].dim() != 1:
        raise _unlike(original, f"its last norm has {', '.join(own)}")
    weight = own["weight"]
    old = {name: value.detach().clone() for name, value in own.items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, weight.numel(), generator=generator).to(weight.device, weight.dtype)
    expected = norm(x) / temperature
    rounding = 8 * torch.finfo(weight.dtype).eps * expected.abs().amax()
    forms = (weight.double() / temperature, (1 + weight.double()) / temperature - 1)
    try:
        for form in forms:
            new = {"weight": form} | {
                name: value.double() / temperature for name, value in old.items() if name == "bias"
            }
            for name, value in new.items():
                own[name].copy_(value)
            if (norm(x) - expected).abs().amax() <= rounding:
                return new
    finally:
        for name, value in old.items():
            own[name].copy_(value)
    raise _unlike(original, f"its last norm, a {type(norm).__name__}, is not linear in its weight")


def _stored_name(original: Checkpoint, model: PreTrainedModel, parameter: str) -> str:
    """What a parameter of the model is called in the files: it may lack the backbone's prefix."""
    prefix = model.base_model_prefix + "."
    names = (parameter, parameter.removeprefix(prefix), prefix + parameter)
    found = {name for name in names if name in original.tensors}
    if len(found) != 1:
        raise _unlike(original, f"its files have {sorted(found) or 'nothing'} for `{parameter}`")
    (name,) = found
    stored = original.tensors[name]
    if stored.dtype not in DTYPES:
        raise _unlike(original, f"`{name}` is stored as {stored.dtype}")
    value = torch.frombuffer(bytearray(stored.read()), dtype=DTYPES[stored.dtype])
    own = model.get_parameter(parameter).detach().cpu()
    if not torch.equal(value.to(own.dtype), own):
        raise _unlike(original, f"`{name}` is not what the model has as `{parameter}`")
    return name


def _packed(value: Tensor, old: StoredTensor) -> tuple[StoredTensor, bool]:
    """`value` in the old tensor's type where that holds it, else in fp32, which is told."""
    dtype = old.dtype
    is_wider = dtype in ("F16", "BF16") and not torch.equal(value.to(DTYPES[dtype]).double(), value)
    if is_wider:
        dtype = "F32"
    data = value.to(DTYPES[dtype]).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return StoredTensor(dtype, old.shape, old.file, 0, len(data), data), is_wider


def _write(original: Checkpoint, change: Change, folder: Path, link: bool) -> None:
    copy = _linked if link else shutil.copyfile
    # What a later reader takes for the model's type must not be the widened weight's.
    dtype = {} if change.widened == [] else {"dtype": _dtype_of(original)}
    without = {key: value for key, value in original.written.items() if key != "torch_dtype"}
    write_json(
        folder / CONFIG, {**(without if dtype else original.written), **dtype, **change.config}
    )
    copy_files(original.others(NOTE), folder)
    for file in sorted({tensor.file for tensor in original.tensors.values()}):
        inside = tensors_of(file)
        if new := {name: change.tensors[name] for name in inside if name in change.tensors}:
            write_file(folder / file.name, inside | new)
        else:
            copy(file.resolve(), folder / file.name)
    if (original.folder / INDEX).is_file():
        index = json_of(original.folder / INDEX)
        written = original.tensors | change.tensors
        index["metadata"] = {"total_size": sum(tensor.size for tensor in written.values())}
        write_json(folder / INDEX, index)


def _dtype_of(original: Checkpoint) -> str:
    said = original.config.dtype
    if said is None:
        first = next(tensor for tensor in original.tensors.values() if tensor.dtype in DTYPES)
        said = DTYPES[first.dtype]
    return str(said).removeprefix("torch.")


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _hold(before: Logits, after: Logits, temperature: float, original: Checkpoint) -> None:
    error = before.error(after, temperature)
    if not error <= CLOSE:
        raise _unlike(
            original,
            f"its logits, loaded from what was written, are not the original's divided by "
            f"{temperature:g}: they differ by {error:.2g} of the largest",
        )


def _unlike(original: Checkpoint, why: str) -> CheckpointError:
    return CheckpointError(
        f"{original.folder} ({original.config.model_type}) cannot be tempered: {why}. Capture from "
        "the model itself, without a server: a local teacher gives every temperature."
    )
