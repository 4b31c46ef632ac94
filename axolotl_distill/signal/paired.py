"""The rows of a batch that a teacher with another tokenizer reads as well: its tokens of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from axolotl_distill.signal.batch import (
    IGNORE,
    NUMBERS,
    OTHER_IDS,
    OTHER_LABELS,
    OTHER_NUMBERS,
    TARGETS,
)

LABELS = "labels"


@dataclass(frozen=True)
class PairedRow:
    """A row as both read it.

    at     int64 [S], ascending: its tokens, as numbers in [0, B * S) of the batch
    there  int64 [S'], ascending: the teacher's, as numbers in [0, B * S')
    texts  input_ids and labels [S], teacher_input_ids and teacher_labels [S'], as the dataset has
           them
    """

    at: np.ndarray
    there: np.ndarray
    texts: dict[str, Any]


def paired_rows(columns: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> dict[int, PairedRow]:
    """The rows of a batch that teach something, by their number in it.

    columns, inputs   as a SignalSource gets them; `labels` [B, S] among the inputs
    """
    own = {name: _flat(inputs[name]) for name in ("input_ids", LABELS)}
    theirs = {column.name: _flat(columns[column.name]) for column in (OTHER_IDS, OTHER_LABELS)}
    numbers, others = _flat(columns[NUMBERS.name]), _flat(columns[OTHER_NUMBERS.name])
    found = {}
    for number in np.unique(numbers[_flat(columns[TARGETS.name]) != IGNORE]).tolist():
        at, there = np.flatnonzero(numbers == number), np.flatnonzero(others == number)
        texts = {name: values[at] for name, values in own.items()}
        texts |= {name: values[there] for name, values in theirs.items()}
        found[number] = PairedRow(at, there, texts)
    return found


def _flat(values: Tensor) -> np.ndarray:
    return values.cpu().numpy().reshape(-1)
