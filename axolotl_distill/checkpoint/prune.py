"""A student that begins as some layers of its teacher.

DistilBERT (arXiv 1910.01108) takes every other layer, Minitron (2407.14679) drops a block of them.
The layers go over as bytes; embeddings, final norm and head stay as they are.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from axolotl_distill.checkpoint.card import PruneNote, write_prune_card
from axolotl_distill.checkpoint.folder import (
    CONFIG,
    Checkpoint,
    copy_files,
    new_folder,
    quiet_transformers,
)
from axolotl_distill.checkpoint.layers import cut_config
from axolotl_distill.checkpoint.tensors import Stored, names_of, write_json, write_tensors
from axolotl_distill.errors import CheckpointError
from axolotl_distill.teachers.fingerprint import weights_of

NOTE = "prune.json"
# A first number in a tensor's name, and what stands before and behind it.
NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d+)\.(.+)")
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class LayerNames:
    """A tensor of layer i is called `prefix` i `.` …"""

    prefix: str

    def moved(self, name: str, place: dict[int, int]) -> str | None:
        """The tensor's name where layer i is layer place[i]; None where it is left out."""
        found = NUMBERED.fullmatch(name)
        if found is None or found[1] != self.prefix:
            return name
        at = place.get(int(found[2]))
        return None if at is None else f"{self.prefix}{at}.{found[3]}"

    def beyond(self, names: Iterable[str], number: int) -> list[str]:
        """Those of layers from `number` on."""
        found = [(name, NUMBERED.fullmatch(name)) for name in names]
        return [
            name
            for name, match in found
            if match is not None and match[1] == self.prefix and int(match[2]) >= number
        ]


def refuse_uncuttable(teacher: Checkpoint) -> None:
    """Raises CheckpointError for what cannot be cut by layers, as far as its config tells."""
    config, where = teacher.config, teacher.folder
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{where} is quantised, and a student of quantised layers cannot be trained. Prune the "
            "checkpoint it was quantised from."
        )
    if config.get_text_config() is not config or getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{where} ({config.model_type}) is more than one stack of layers. Save its text model "
            "by itself, and prune that."
        )
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        raise CheckpointError(
            f"{where} scales its attention by the number of the layer "
            "(`scale_attn_by_inverse_layer_idx`): a layer in another place is another layer."
        )
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise CheckpointError(f"{where} ({config.model_type}) does not say how many layers it has.")


def prune(teacher: Checkpoint, kept: Sequence[int], out: str) -> PruneNote:
    """Writes the student and returns its note. Memory: some MB, whatever the teacher weighs.

    kept  ascending layers of the teacher; `refuse_uncuttable` has passed

    Raises CheckpointError where a layer would be built otherwise than it is in the teacher, and
    where transformers does not find all of the student in what was written; nothing is left then.
    """
    place = {layer: at for at, layer in enumerate(kept)}
    original = _without_weights(teacher)
    names = _layer_names(original, teacher.tensors, teacher.config.num_hidden_layers)
    moved = {names.moved(name, place): tensor for name, tensor in teacher.tensors.items()}
    tensors: Stored = {name: tensor for name, tensor in moved.items() if name is not None}
    cut = cut_config(teacher.config, teacher.written, kept)
    left_out = names.beyond(teacher.tensors, teacher.config.num_hidden_layers)
    weights = weights_of(str(teacher.folder))
    note = PruneNote.of(teacher, kept, cut, tensors, weights, left_out)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, cut)
        write_tensors(folder, tensors)
        copy_files(teacher.others(NOTE), folder)
        _check(original, kept, folder)
        write_json(folder / NOTE, note.as_json())
        write_prune_card(folder, note, teacher.folder)
    return note


def _without_weights(teacher: Checkpoint) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(teacher.config).eval()
    except (ValueError, ImportError) as error:
        raise CheckpointError(
            f"{teacher.folder} ({teacher.config.model_type}) is no causal language model that "
            f"transformers builds: {error}"
        ) from error


def _stack(model: PreTrainedModel) -> tuple[str, Sequence[nn.Module]]:
    number = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return name, list(module)
    raise CheckpointError(
        f"A {type(model).__name__} does not have its {number} layers in one list. It cannot be cut."
    )


def _layer_names(model: PreTrainedModel, tensors: Stored, number: int) -> LayerNames:
    numbers = defaultdict(set)
    for name in tensors:
        if (found := NUMBERED.fullmatch(name)) is not None:
            numbers[found[1]].add(int(found[2]))
    last = _stack(model)[0].rpartition(".")[2] + "."
    fits = [
        prefix
        for prefix, found in numbers.items()
        if set(range(number)) <= found and (prefix == last or prefix.endswith("." + last))
    ]
    if len(fits) != 1:
        raise CheckpointError(
            f"The {number} layers of a {type(model).__name__} are called `…{last}0.…` to "
            f"`…{last}{number - 1}.…`, and of such names the checkpoint has {fits or 'none'}. It "
            "is not whole, or of another kind."
        )
    return LayerNames(fits[0])


def _check(original: PreTrainedModel, kept: Sequence[int], folder: Path) -> None:
    """Has transformers find every weight of the student, and holds each of its layers to the one
    that it was. Nothing is loaded."""
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, device_map="meta", output_loading_info=True
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"transformers cannot open the student: {error}") from error
    student, found = loaded
    _, before = _stack(original)
    _, after = _stack(student)
    for at, layer in enumerate(kept):
        if difference := _difference(before[layer], after[at], layer, at):
            raise CheckpointError(
                f"The teacher's layer {layer} would be another one as layer {at} of the student: "
                f"{difference}. In this model ({original.config.model_type}) what a layer is "
                "depends on its place; choose layers that keep it."
            )
    if found["missing_keys"]:
        raise CheckpointError(
            f"{len(found['missing_keys'])} weights of the student are not in the teacher's files, "
            f"as {names_of(sorted(found['missing_keys']))}. Is the teacher whole?"
        )


def _difference(before: nn.Module, after: nn.Module, layer: int, at: int) -> str:
    ours = dict(after.named_modules())
    theirs = dict(before.named_modules())
    if ours.keys() != theirs.keys():
        return f"it has other parts ({names_of(sorted(ours.keys() ^ theirs.keys()))})"
    for name, module in theirs.items():
        if type(module) is not type(ours[name]):
            return f"`{name}` is a {type(ours[name]).__name__}, not a {type(module).__name__}"
        for key, value in vars(module).items():
            seen = vars(ours[name]).get(key)
            is_its_number = (value, seen) == (layer, at) and not isinstance(value, bool)
            if _plain(value) and seen != value and not is_its_number:
                return f"`{name}.{key}` is {seen!r}, not {value!r}"
        for key, tensor in module.named_parameters(recurse=False):
            seen_shape = tuple(getattr(ours[name], key).shape)
            if seen_shape != tuple(tensor.shape):
                return f"`{name}.{key}` is of shape {seen_shape}, not {tuple(tensor.shape)}"
    return ""


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(part, PLAIN) for part in value)
    return isinstance(value, PLAIN)
