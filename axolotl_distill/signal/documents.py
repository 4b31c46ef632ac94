"""The texts within a batch: where each begins and ends, packed or padded."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from axolotl_distill.signal.batch import CONTEXT_NUMBERS, CONTEXTS, NUMBERS


def documents(inputs: Mapping[str, Any]) -> list[slice]:
    """The documents of a batch, in order, as slices of its tokens flattened to [B * S].

    inputs  input_ids [B, S] and, where they are there, attention_mask [B, S] (0 = padding; a packed
            batch may number its documents with it) and position_ids [B, S] (0 begins a document).
            Padding that neither of them tells becomes documents of its own, or the end of one.
    """
    shape = inputs["input_ids"].shape
    begins = np.zeros(shape, dtype=bool)
    begins[:, 0] = True
    position_ids = _plane(inputs.get("position_ids"), shape)
    mask = _plane(inputs.get("attention_mask"), shape)
    if position_ids is not None:
        begins |= position_ids == 0
    if mask is not None:
        begins[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    starts = np.flatnonzero(begins)
    stops = np.append(starts[1:], begins.size)
    read = np.ones(len(starts), dtype=bool) if mask is None else mask.reshape(-1)[starts] != 0
    return [slice(a, b) for a, b in zip(starts[read].tolist(), stops[read].tolist(), strict=True)]


def contexts(columns: Mapping[str, Any]) -> Callable[[slice], list[int]]:
    """What only the teacher reads of a document of a batch that has the columns of it, [C] ids."""
    ids, numbers, rows = (
        columns[column.name].cpu().numpy().reshape(-1)
        for column in (CONTEXTS, CONTEXT_NUMBERS, NUMBERS)
    )
    return lambda document: ids[numbers == rows[document.start]].tolist()


def _plane(values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """[B, S] on the host; None for what is not there, or is of another form."""
    if not isinstance(values, Tensor) or values.shape != shape:
        return None
    return values.cpu().numpy()
