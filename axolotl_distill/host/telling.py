"""Rows that tell their live teachers something (datasets/told.py) within Axolotl: what cannot go
with them, and what they tell, found before a weight is read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_distill.config.choice import ChoiceArgs
from axolotl_distill.config.distill import DistillArgs, is_store
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.told import Told, chosen_of, tell
from axolotl_distill.host.findings import Finding
from axolotl_distill.host.live_checks import positions_of
from axolotl_distill.signal.batch import CHOICES, CONTEXTS

LOG = get_logger(__name__)
TRAINING, EVALUATION = "training set", "evaluation set"
BEGIN = 16
"""Tokens that a row is named by."""


def told_of(args: DistillArgs) -> Told | None:
    """What the rows are to tell; None where they tell nothing."""
    contexts = tuple(
        None if teacher.context_column is None else (teacher.context_column, teacher.context)
        for teacher in args.teachers.values()
    )
    if isinstance(args.teacher, ChoiceArgs):
        return Told(args.teacher.column, args.teacher.names, contexts)
    return Told(None, (), contexts) if any(contexts) else None


def _key(told: Told) -> str:
    return "context_column" if told.column is None else "choices"


def told_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with such rows and cannot go with them. Works before Axolotl has
    validated the config, and after."""
    told = told_of(args)
    if told is None:
        return
    if cfg.get("streaming"):
        yield Finding(
            "streaming",
            f"`streaming: true` cannot be combined with `distill.teacher.{_key(told)}`:",
            "that every row tells its teacher what it must is found out before training.",
            "Remove it.",
        )
    for entry in [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]:
        if is_store(entry) or not entry.get("type"):
            kind = "a store" if is_store(entry) else "an entry without `type`"
            yield Finding(
                "datasets",
                f"{entry.get('path')} is {kind},",
                f"whose rows are tokens, and what `distill.teacher.{_key(told)}` needs of a row is "
                "read from rows of text.",
                "Name the text that it was made from, with its `type`.",
            )


def tell_rows(datasets: list[Any] | None, args: DistillArgs) -> None:
    """Has Axolotl keep what its rows tell their teachers, in place."""
    if (told := told_of(args)) is not None:
        tell(datasets or [], told)


def check_told(datasets: Mapping[str, Any], cfg: Any, args: DistillArgs) -> None:
    """Says how many rows each of several teachers has, and warns of one without any.

    datasets  as Axolotl prepared them, by what a user calls them

    Raises ConfigError for rows that were not made by their text's type, and for one whose teacher
    would read more than the student's model has positions.
    """
    told = told_of(args)
    if told is None:
        return
    columns = [CHOICES.name] if told.column is not None else []
    columns += [CONTEXTS.name] if any(told.contexts) else []
    for name, dataset in datasets.items():
        if dataset is None:
            continue
        if not isinstance(dataset, Dataset) or not {*columns} <= {*dataset.column_names}:
            raise ConfigError(
                f"The rows of the {name} tell their teacher nothing (`distill.teacher."
                f"{_key(told)}`), so they were not made of text: an entry of `datasets` has token "
                "ids already. Name the text that they were made from, with its `type` and columns."
            )
        if told.column is not None:
            _count(name, dataset, told.names)
        if any(told.contexts):
            _check_lengths(name, dataset, cfg)


def _count(name: str, dataset: Dataset, names: tuple[str, ...]) -> None:
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
            f"{' and '.join(f'`distill.teacher.choices.{own}`' for own in unused)}, which is "
            "loaded all the same. Remove what is not used."
        )


def _check_lengths(name: str, dataset: Dataset, cfg: Any) -> None:
    lengths = np.concatenate(
        [
            table[CONTEXTS.name].combine_chunks().value_lengths().to_numpy()
            for table in dataset.select_columns(CONTEXTS.name).with_format("arrow").iter(4096)
        ]
        or [np.zeros(1, dtype=np.int64)]
    )
    LOG.info(
        f"axolotl-distill: the teacher reads {lengths.mean():.0f} tokens before a text of the "
        f"{name}, {lengths.max()} at most"
    )
    most, longest = positions_of(cfg), int(lengths.max())
    if most is not None and longest + cfg.sequence_len > most:
        ids = dataset[int(lengths.argmax())]["input_ids"][:BEGIN]
        raise ConfigError(
            f"Of the row of the {name} that begins {load_tokenizer(cfg).decode(ids)!r} the teacher "
            f"alone reads {longest} tokens, which with `sequence_len: {cfg.sequence_len}` are more "
            f"than the {most} positions of {cfg.base_model}. Shorten one of the two: a row may "
            f"have {max(most - longest, 0)} tokens."
        )
