"""The names users write in `datasets[].type`, and what they stand for.

Axolotl reads a dotted type as a module with a `load` function. `axolotl_distill.store` would
then be the store package itself, which knows nothing of Axolotl, so the plugin replaces the
public names by the modules of this folder when it is registered.
"""

import hashlib
import os
from glob import glob
from pathlib import Path
from typing import Any

from axolotl_distill.address import is_address
from axolotl_distill.config.cache import CacheArgs
from axolotl_distill.config.distill import STORE_MODULE, STORE_TYPE, is_store
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.compat import dataset_keys
from axolotl_distill.host.datasets.thinking import DROP, parse_thinking
from axolotl_distill.store import CachePlace, TeacherStore, open_store

CHAT_TYPE = "axolotl_distill.chat"
TRAJECTORIES_TYPE = "axolotl_distill.trajectories"
MODULES = {
    STORE_TYPE: STORE_MODULE,
    CHAT_TYPE: "axolotl_distill.host.datasets.chat",
    TRAJECTORIES_TYPE: "axolotl_distill.host.datasets.trajectories",
}
READ_OF_STORES = (
    "path",
    "type",
    "split",
    "shards",
    "shards_idx",
    "preprocess_shards",
    "trust_remote_code",
    "weight",
)
THINKING = "thinking"
CARRIER, CARRIED = "input_format", "axolotl_distill.thinking="
"""Axolotl's schema drops the keys of a dataset that it does not know. This one it knows, reads
nowhere, and counts into the key of its prepared-dataset cache."""
READ_AS = "axolotl_distill_type"
"""The type that an entry had before it was read for two (paired.py)."""
UNFILTERED = {"generation.json": "`generate`", "rollouts.json": "`on_policy.keep`"}
"""What lies in a folder that has to be filtered first, and who put it there."""
READ_BY = "|axolotl_distill.read_by="
"""In the carrier too: for whom."""


def is_ours(dataset: Any) -> bool:
    """Whether a `datasets` entry needs this plugin."""
    return str(dataset.get("type") or "").startswith("axolotl_distill.")


def is_trajectories(dataset: Any) -> bool:
    kind = dataset.get(READ_AS) or dataset.get("type")
    return kind in (TRAJECTORIES_TYPE, MODULES[TRAJECTORIES_TYPE])


def thinking_of(dataset: Any) -> float | str:
    """What `thinking` says of a trajectories dataset; see `parse_thinking`."""
    carried = (dataset.get(CARRIER) or "").partition(READ_BY)[0]
    return parse_thinking(carried.removeprefix(CARRIED) or None)


def weighs_thinking(datasets: list[Any] | None) -> bool:
    """Whether some of the datasets have tokens whose weight is neither 0 nor 1."""
    return any(
        is_trajectories(dataset) and thinking_of(dataset) not in (0.0, 1.0, DROP)
        for dataset in datasets or []
    )


def resolve_types(datasets: list[Any] | None) -> None:
    """Replace the public type names by their modules, in place, and keep `thinking` from being
    dropped by Axolotl's schema. A path's `~` becomes the home folder.

    A store has one split, `train`, also when it is used under `test_datasets`; it is filled in
    where the user left it out. Raises ConfigError for a type of ours that does not exist, for an
    option of a store that it would ignore, for one of trajectories that is wrong, misspelt or given
    to another type, and for what is no dataset yet.
    """
    for dataset in datasets or []:
        if str(dataset.get("path") or "").startswith("~"):
            dataset["path"] = os.path.expanduser(dataset["path"])
        name = dataset.get("type")
        if not isinstance(name, str):
            continue
        if name.startswith("axolotl_distill.") and name not in (*MODULES, *MODULES.values()):
            raise ConfigError(
                f"`datasets[].type: {name}` is not a type of axolotl-distill. "
                f"Known types: {', '.join(MODULES)}."
            )
        dataset["type"] = MODULES.get(name, name)
        _carry_thinking(dataset)
        _refuse_unfiltered(dataset)
        if is_store(dataset):
            _check_store_options(dataset)
            dataset["split"] = dataset.get("split") or "train"


def _refuse_unfiltered(dataset: Any) -> None:
    """What `generate` and `on_policy.keep` write has each answer beside its conversation: Axolotl
    would find nothing to learn in it, or no columns that it can read."""
    path = Path(str(dataset.get("path") or ""))
    folder = path.parent if path.suffix == ".jsonl" else path
    for mark, who in UNFILTERED.items():
        if (folder / mark).is_file():
            raise ConfigError(
                f"`datasets[].path: {path}` is what {who} wrote, and no dataset yet: an answer "
                "stands beside its conversation, and nothing was verified. Run `axolotl distill "
                f"filter RECIPE.yml` with `filter: {{input: {folder}, output: DATASET}}`, and name "
                "DATASET here."
            )


def _check_store_options(dataset: Any) -> None:
    """A store has its tokens and labels already: an option that makes them is not read."""
    ignored = [key for key in dataset if dataset[key] and key not in READ_OF_STORES]
    if ignored:
        raise ConfigError(
            f"`datasets[].{ignored[0]}` has no effect on {dataset.get('path')}, a store: its "
            "tokens and labels were fixed when it was captured. Remove it here; give it to the "
            "dataset under `distill.capture.datasets`, and capture again, if it is to count."
        )
    if dataset.get("weight") and "weight" not in dataset_keys():
        raise ConfigError(
            f"`datasets[].weight` of {dataset.get('path')} needs Axolotl 0.20: this one would "
            "train on every row. Remove it, or take a part of the rows with `shards`."
        )
    split = dataset.get("split") or "train"
    if split.partition("[")[0] != "train":
        raise ConfigError(
            f"`datasets[].split: {split}` of {dataset.get('path')}: a store has one split, train. "
            "Remove `split`; for evaluation set `val_set_size`, or capture a second store for "
            "`test_datasets`."
        )


def _carry_thinking(dataset: Any) -> None:
    if is_trajectories(dataset):
        unknown = [key for key in dataset if key not in (*dataset_keys(), THINKING)]
        if unknown:
            raise ConfigError(
                f"`datasets[].{unknown[0]}` is not a key of {TRAJECTORIES_TYPE}, which takes "
                "`thinking` and the options of Axolotl's chat_template. Correct or remove it."
            )
    value = dataset.pop(THINKING, None)
    if value is None:
        return
    if not is_trajectories(dataset):
        raise ConfigError(
            f"`datasets[].thinking` is an option of type {TRAJECTORIES_TYPE}, and this dataset's "
            f"type is {dataset.get('type')}. Change the type, or remove `thinking`."
        )
    parse_thinking(value)
    dataset[CARRIER] = f"{CARRIED}{value}"


def open_stores(datasets: list[Any] | None, cache: CachePlace | None = None) -> list[TeacherStore]:
    """The stores among `datasets`, opened in order, each path once."""
    paths = dict.fromkeys(str(dataset["path"]) for dataset in datasets or [] if is_store(dataset))
    return [open_store(path, cache=cache) for path in paths]


def cache_place(cfg: Any) -> CachePlace:
    """What `distill.cache` says of stores at an address."""
    block = (cfg.distill or {}).get("cache") or {}
    args = CacheArgs.model_validate(dict(block))
    return CachePlace(None if args.folder is None else Path(args.folder), args.size)


def bring_near(datasets: list[Any] | None, cache: CachePlace) -> None:
    """Fetch the rows of stores that lie at an address, and name the folder that has them, their
    mirror, in place: what reads rows, here and in Axolotl, reads local files. Records are fetched
    when they are asked for. Raises what `open_store` does."""
    for dataset in datasets or []:
        if is_store(dataset) and is_address(dataset["path"]):
            dataset["path"] = str(open_store(str(dataset["path"]), cache=cache).path)


def follow_content(datasets: list[Any] | None) -> None:
    """Make two caches follow what the files hold and not just their names, in place.

    Axolotl's prepared-dataset cache: its key covers a dataset's config but not its content, so a
    store captured again, or a JSONL edited, would silently train on the old rows. `revision` is
    part of that key and means nothing for a local path: it carries the store's uid, or the hash
    of the local files.

    The cache of `datasets`: for a folder with a dataset card it is keyed by the folder's name
    (seen with datasets 4.8), for files by names and time stamps, which an edit may leave as they
    were. `name` is part of that key and, where the files are named, means nothing else: it carries
    the hash too. So the files of a folder are listed.
    """
    for dataset in datasets or []:
        path = Path(str(dataset["path"]))
        if is_store(dataset):
            store = open_store(path)
            dataset["revision"] = store.manifest.uid
            dataset["ds_type"] = "parquet"
            dataset["data_files"] = [str(file.resolve()) for file in store.parquet_files]
        elif path.is_file():
            _carry_digest(dataset, [path])
        elif path.is_dir() and _is_saved(path):
            # Dataset.save_to_disk wrote it, and it is read as it lies, without a cache.
            dataset["revision"] = _digest(sorted(path.rglob("*.arrow")))
        elif path.is_dir():
            if not dataset.get("data_files"):
                _list_files(dataset, path)
            _carry_digest(dataset, _local_files(dataset["data_files"]))


def _carry_digest(dataset: Any, files: list[Path]) -> None:
    digest = _digest(files)
    dataset["revision"] = digest
    if not isinstance(dataset.get("name"), list):
        dataset["name"] = f"content-{digest[:32]}"


def _is_saved(folder: Path) -> bool:
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _list_files(dataset: Any, folder: Path) -> None:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(str(folder), dataset.get("name"))
    splits = {str(split): list(files) for split, files in builder.config.data_files.items()}
    dataset["ds_type"] = type(builder).__module__.rpartition(".")[2]
    dataset["data_files"] = splits


def _local_files(data_files: Any) -> list[Path]:
    """The files that `data_files` names: one, several, or several for each split; patterns too."""
    if isinstance(data_files, dict):
        return [file for files in data_files.values() for file in _local_files(files)]
    patterns = [data_files] if isinstance(data_files, str) else data_files
    found = (sorted(glob(str(pattern), recursive=True)) for pattern in patterns)
    return [Path(name) for names in found for name in names if Path(name).is_file()]


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def all_stores(cfg: Any) -> list[TeacherStore]:
    """Every store a run reads: those of `datasets`, then those only in `test_datasets`."""
    datasets = [*(cfg.datasets or []), *(cfg.test_datasets or [])]
    return open_stores(datasets, cache_place(cfg))
