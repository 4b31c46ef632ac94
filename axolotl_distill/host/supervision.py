"""Rows as a user knows them: which of a dataset teach nothing, and which a batch holds."""

from typing import Any

import numpy as np
from axolotl.utils.logging import get_logger
from datasets import Dataset
from torch import Tensor

from axolotl_distill.errors import ConfigError
from axolotl_distill.signal.batch import IGNORE, TARGETS, supervised_counts

LOG = get_logger(__name__)
ROWS_AT_ONCE = 256
AROUND = 12
"""Tokens before and after the first supervised one that a row is named by."""


def check_supervision(datasets: dict[str, Any], tokenizer: Any) -> None:
    """Says how many rows of each dataset have no supervised token, and names one.

    datasets  by what a user calls them; whatever is no prepared dataset (a stream) is left alone

    Raises ConfigError where none of a dataset's rows has one: there is nothing to learn from or
    to evaluate.
    """
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset) or "labels" not in dataset.column_names:
            continue
        without, total = unsupervised_rows(dataset), len(dataset)
        if not without.size:
            continue
        example = _text(dataset[int(without[0])]["input_ids"][: 2 * AROUND], tokenizer)
        why = (
            "Such are turns cut off before their answer, rows whose answer lies beyond "
            "`sequence_len`, and what `train_on_inputs` or `roles_to_train` mask."
        )
        if without.size == total:
            raise ConfigError(
                f"None of the {total} rows of the {name} has a supervised token (one begins "
                f"{example}). {why} Raise `sequence_len`, change the masks, or use other rows."
            )
        LOG.warning(
            f"axolotl-distill: {without.size} of {total} rows of the {name} have no supervised "
            f"token and teach nothing (one begins {example}). {why} Raise `sequence_len`, or take "
            "them out (`axolotl distill filter` does)."
        )


def unsupervised_rows(dataset: Dataset) -> np.ndarray:
    """Indices int64 of the rows without a label but perhaps their first, which nothing predicts."""
    found, start = [], 0
    for table in dataset.select_columns("labels").with_format("arrow").iter(ROWS_AT_ONCE):
        column = table["labels"].combine_chunks()
        counts = supervised_counts(column.flatten().to_numpy(), column.value_lengths().to_numpy())
        found.append(start + np.flatnonzero(counts == 0))
        start += len(column)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def describe_rows(batch: dict[str, Any], tokenizer: Any) -> list[str]:
    """The text around the first supervised token of every row of a batch that has one.

    batch  input_ids and the targets [B, S]; with position_ids, each 0 begins a row of its own
    """
    rows = []
    for at, (ids, targets) in enumerate(zip(batch["input_ids"], batch[TARGETS.name], strict=True)):
        positions = batch.get("position_ids")
        for document in _documents(targets, None if positions is None else positions[at]):
            predicting = (targets[document] != IGNORE).nonzero().flatten().tolist()
            if predicting:
                first = document.start + predicting[0] + 1
                around = slice(max(document.start, first - AROUND), first + AROUND)
                rows.append(_text(ids[: document.stop][around].tolist(), tokenizer))
    return rows or ["(none of its rows has a supervised token)"]


def _text(ids: list[int], tokenizer: Any) -> str:
    return f"tokens {ids}" if tokenizer is None else repr(tokenizer.decode(ids))


def _documents(targets_S: Tensor, positions_S: Tensor | None) -> list[slice]:
    if positions_S is None:
        return [slice(0, targets_S.numel())]
    starts = (positions_S == 0).nonzero().flatten().tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], targets_S.numel()], strict=True)]
