"""Which layers of a teacher a student keeps, and what a config says of them one by one."""

import re
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from axolotl_distill.errors import CheckpointError

FORMS = "`0,2,4`, `0-7,16-23`, `every 2`, or `drop 5,10,15`"
PART = re.compile(r"(\d+)(?:-(\d+))?")
# Numbers of layers, not one entry a layer.
INDICES = ("mlp_only_layers", "moe_layers", "full_attn_idxs")
# How many layers at the beginning are of another kind.
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# Layers behind the model's own, which predict further tokens; they are not kept.
FURTHER = ("num_nextn_predict_layers", "num_mtp_layers")


def chosen_layers(said: str, number: int) -> list[int]:
    """The layers, ascending, that `said` keeps of `number`: a list with ranges, "every N" (0, N,
    2N, …), or "drop" and a list. Raises CheckpointError."""
    words = said.split(maxsplit=1)
    if len(words) == 2 and words[0] == "every":
        if not words[1].isdecimal() or int(words[1]) < 1:
            raise CheckpointError(f"`--layers {said}`: N of `every N` is a number from 1.")
        return list(range(0, number, int(words[1])))
    if len(words) == 2 and words[0] == "drop":
        dropped = _listed(words[1], said, number)
        return _some([layer for layer in range(number) if layer not in set(dropped)], said)
    return _some(_listed(said, said, number), said)


def evenly(keep: int, number: int) -> list[int]:
    """`keep` of `number` layers, the first and the last among them, as evenly as can be."""
    if not 1 <= keep <= number:
        raise CheckpointError(f"`--keep {keep}`: the teacher has {number} layers.")
    if keep == 1:
        return [0]
    # Halves are rounded up, everywhere alike.
    return [(2 * at * (number - 1) + keep - 1) // (2 * (keep - 1)) for at in range(keep)]


def _listed(text: str, said: str, number: int) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        match = PART.fullmatch(part.strip())
        if match is None:
            raise CheckpointError(
                f"`--layers {said}`: {part.strip()!r} is no layer. It is {FORMS}; layers count "
                f"from 0 to {number - 1}."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if max(first, last) >= number:
            raise CheckpointError(
                f"`--layers {said}`: the teacher has no layer {max(first, last)}; its {number} "
                f"layers count from 0 to {number - 1}."
            )
        found += range(first, last + 1) if first <= last else [first, last]
    if found != sorted(set(found)):
        raise CheckpointError(
            f"`--layers {said}`: layers are named once each, in their order, for a student runs "
            "them in the order in which its teacher does."
        )
    return found


def _some(layers: list[int], said: str) -> list[int]:
    if not layers:
        raise CheckpointError(f"`--layers {said}` leaves no layer.")
    return layers


def cut_config(
    config: PretrainedConfig, written: dict[str, Any], kept: Sequence[int]
) -> dict[str, Any]:
    """What config.json says of the layers `kept`: their number, every list with an entry a layer,
    every list of layers by number, and how many are of the kind that comes first.

    Lists that transformers derives from other keys are written out: derived anew, they would be
    those of the first layers.
    """
    number = config.num_hidden_layers
    alias = config.attribute_map.get("num_hidden_layers")
    named = alias if alias in written else "num_hidden_layers"
    cut = {**written, named: len(kept)}
    place = {layer: at for at, layer in enumerate(kept)}
    for name, value in config.to_dict().items():
        if name in INDICES and isinstance(value, list):
            cut[name] = [place[layer] for layer in value if layer in place]
        elif "layer" in name and isinstance(value, list) and len(value) == number:
            cut[name] = [value[layer] for layer in kept]
        elif name in FIRST and isinstance(value, int):
            cut[name] = sum(layer < value for layer in kept)
        elif name in FURTHER and value:
            cut[name] = 0
    return cut
