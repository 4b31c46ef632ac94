"""The text to capture, tokenised by Axolotl exactly as it would be for training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import multiprocess
from axolotl.cli.config import load_cfg
from axolotl.loaders import load_tokenizer
from axolotl.utils.data.sft import prepare_datasets
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from pydantic import ValidationError

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import STORE_TYPE, DistillArgs, is_store, parse_distill
from axolotl_distill.disk.scratch import scratch_folder
from axolotl_distill.errors import ConfigError, DistillError
from axolotl_distill.host.datasets.paired import COLUMNS, Reader, read_too
from axolotl_distill.host.datasets.types import (
    follow_content,
    resolve_types,
    weighs_thinking,
)
from axolotl_distill.host.rows import check_rows, find_fault
from axolotl_distill.store.folder import TOKENISED


def load_config(path: str | Path) -> tuple[DictDefault, DistillArgs]:
    """(Axolotl's validated config, the distill block) of a YAML.

    Raises ConfigError when the file is missing or has no `distill:` block.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file.")
    try:
        cfg = load_cfg(str(path))
    except ValidationError as error:
        raise ConfigError(f"{path} is not a config that Axolotl accepts:\n{error}") from error
    if cfg.distill is None:
        raise ConfigError(f"{path} has no `distill:` block.")
    return cfg, parse_distill(cfg.distill.to_dict(), cfg.datasets)


def capture_datasets(cfg: DictDefault, args: CaptureArgs) -> list[DictDefault]:
    """The `datasets` entries to capture, types resolved."""
    given = args.datasets
    if given is None:
        given = [dict(entry) for entry in cfg.datasets or [] if not is_store(entry)]
    if not given:
        raise ConfigError(
            "There is no text to capture: every entry of `datasets` is a store. Name the text "
            "under `distill.capture.datasets`, as you would under `datasets`."
        )
    entries = [DictDefault(entry) for entry in given]
    if any(is_store(entry) for entry in entries):
        raise ConfigError(
            f"`distill.capture.datasets` holds an entry of type {STORE_TYPE}: a store cannot be "
            "captured again; name the text it was made from."
        )
    for entry in entries:
        if entry.get("weight") not in (None, 1):
            raise ConfigError(
                f"`weight: {entry.weight}` of {entry.path}: a store holds every row of its "
                "dataset, in its order, and training draws from it. Give `weight` to the store "
                "under `datasets`, and name the text without it under `distill.capture.datasets`."
            )
    resolve_types(entries)
    if weighs_thinking(entries):
        raise ConfigError(
            "A store keeps labels, and no weights of tokens: the weight under `thinking` of a "
            "dataset to capture would be lost. Use `thinking: train` or `mask` for it."
        )
    return entries


@contextmanager
def tokenised(
    cfg: DictDefault, entries: list[DictDefault], folder: Path, reader: Reader | None = None
) -> Iterator[tuple[Dataset, Any]]:
    """(rows with input_ids and labels, tokenizer), for as long as the context lasts; they lie in a
    scratch folder below `folder`. With a `reader`, rows have its columns too (datasets/paired.py).

    Chat template, label masks and what happens to overlong rows are the config's. Rows are
    neither shuffled nor packed nor split, and an edited file is read again.

    Raises CaptureError for a dataset or a row that cannot be read, and names it.
    """
    with scratch_folder(folder, TOKENISED) as scratch:
        source = DictDefault(cfg.to_dict())
        follow_content(entries)
        source.datasets = entries
        source.test_datasets = None
        source.val_set_size = 0
        source.sample_packing = False
        source.eval_sample_packing = False
        source.streaming = False
        source.shuffle_merged_datasets = False
        source.shuffle_before_merging_datasets = False
        source.curriculum_sampling = True
        source.push_dataset_to_hub = None
        source.num_epochs = source.num_epochs or 1
        tokenizer = load_tokenizer(source)
        if reader is not None:
            read_too(entries, reader)
        check_rows(source, entries, tokenizer)
        try:
            dataset = _prepared(source, tokenizer, scratch)
        except (DistillError, OSError):
            raise
        except Exception as error:
            raise find_fault(source, entries, tokenizer, error) from error
        columns = ["input_ids", "labels"] + (list(COLUMNS) if reader is not None else [])
        yield dataset.select_columns(columns), tokenizer


def _prepared(source: DictDefault, tokenizer: Any, scratch: Path) -> Dataset:
    """`datasets` gives its last worker 0.05 s to end, which a busy machine may not have: again,
    once, into another folder. What was tokenised is in its cache."""

    def into(folder: Path) -> Dataset:
        folder.mkdir()
        source.dataset_prepared_path = str(folder)
        return prepare_datasets(source, tokenizer)[0]

    try:
        return into(scratch / "first")
    except multiprocess.TimeoutError:
        return into(scratch / "second")
