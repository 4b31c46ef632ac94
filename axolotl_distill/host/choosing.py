"""Several live teachers within Axolotl: what cannot go with them, and which rows each of them
has, both found before a weight is read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_distill.config.choice import ChoiceArgs
from axolotl_distill.config.distill import DistillArgs, is_store
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.told import Told, tell
from axolotl_distill.host.findings import Finding
from axolotl_distill.signal.batch import CHOICES

LOG = get_logger(__name__)
TRAINING, EVALUATION = "training set", "evaluation set"


def choice_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with several teachers and cannot go with them. Works before Axolotl
    has validated the config, and after."""
    if not isinstance(args.teacher, ChoiceArgs):
        return
    if cfg.get("streaming"):
        yield Finding(
            "streaming",
            "`streaming: true` cannot be combined with `distill.teacher.choices`:",
            "that every row names one of the teachers is found out before training.",
            "Remove it.",
        )
    for entry in [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]:
        if is_store(entry) or not entry.get("type"):
            kind = "a store" if is_store(entry) else "an entry without `type`"
            yield Finding(
                "datasets",
                f"{entry.get('path')} is {kind},",
                f"whose rows are tokens, and `distill.teacher.column: {args.teacher.column}` is "
                "read from rows of text.",
                "Name the text that it was made from, with its `type`.",
            )


def tell_rows(datasets: list[Any] | None, args: DistillArgs) -> None:
    """Has Axolotl keep what its rows say of their teacher, in place."""
    if isinstance(args.teacher, ChoiceArgs):
        tell(datasets or [], Told(args.teacher.column, args.teacher.names))


def check_choices(datasets: Mapping[str, Any], args: DistillArgs) -> None:
    """Says how many rows each teacher has, and warns of one without any.

    datasets  as Axolotl prepared them, by what a user calls them

    Raises ConfigError for rows that were not made by their text's type.
    """
    if not isinstance(args.teacher, ChoiceArgs):
        return
    names = args.teacher.names
    for name, dataset in datasets.items():
        if dataset is None:
            continue
        if not isinstance(dataset, Dataset) or CHOICES.name not in dataset.column_names:
            raise ConfigError(
                f"The rows of the {name} do not say which teacher they learn from, so they were "
                "not made of text: an entry of `datasets` has token ids already. Name the text "
                f"that they were made from, with its `type` and a column "
                f"`{args.teacher.column}`."
            )
        counts = np.zeros(len(names), dtype=np.int64)
        for table in dataset.select_columns(CHOICES.name).with_format("arrow").iter(4096):
            chosen = chosen_of(table)
            counts += np.bincount(chosen[chosen >= 0], minlength=len(names))
        shares = ", ".join(f"{own} {count:,}" for own, count in zip(names, counts, strict=True))
        LOG.info(f"axolotl-distill: rows of the {name} by teacher: {shares}")
        unused = [own for own, count in zip(names, counts, strict=True) if not count]
        if unused and name == TRAINING:
            LOG.warning(
                f"axolotl-distill: no row of the {name} learns from "
                f"{' and '.join(f'`distill.teacher.choices.{own}`' for own in unused)}, which "
                "is loaded all the same. Remove what is not used."
            )


def chosen_of(table: pa.Table) -> np.ndarray:
    """int64 [rows]: the number of each row's teacher, -1 of a row without tokens."""
    column = table[CHOICES.name].combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    found = CHOICES.filled(len(column))
    some = np.diff(offsets) > 0
    found[some] = values[offsets[:-1][some]]
    return found
