"""The names users write in `datasets[].type`, and what they stand for.

Axolotl reads a dotted type as a module with a `load` function. `axolotl_distill.store` would
then be the store package itself, which knows nothing of Axolotl, so the plugin replaces the
public names by the modules of this folder when it is registered.
"""

import hashlib
from pathlib import Path
from typing import Any

from axolotl_distill.errors import ConfigError
from axolotl_distill.store import TeacherStore, open_store

STORE_TYPE = "axolotl_distill.store"
CHAT_TYPE = "axolotl_distill.chat"
MODULES = {
    STORE_TYPE: "axolotl_distill.data.store",
    CHAT_TYPE: "axolotl_distill.data.chat",
}


def is_store(dataset: Any) -> bool:
    """Whether a `datasets` entry is a teacher store, under its public or its module name."""
    return dataset.get("type") in (STORE_TYPE, MODULES[STORE_TYPE])


def resolve_types(datasets: list[Any] | None) -> None:
    """Replace the public type names by their modules, in place.

    A store has one split, `train`, also when it is used under `test_datasets`; it is filled in
    where the user left it out.
    """
    for dataset in datasets or []:
        name = dataset.get("type")
        if not isinstance(name, str):
            continue
        if name.startswith("axolotl_distill.") and name not in (*MODULES, *MODULES.values()):
            raise ConfigError(
                f"`datasets[].type: {name}` is not a type of axolotl-distill. "
                f"Known types: {', '.join(MODULES)}."
            )
        dataset["type"] = MODULES.get(name, name)
        if is_store(dataset) and not dataset.get("split"):
            dataset["split"] = "train"


def open_stores(datasets: list[Any] | None) -> list[TeacherStore]:
    """The stores among `datasets`, opened in order, each path once."""
    paths = dict.fromkeys(str(dataset["path"]) for dataset in datasets or [] if is_store(dataset))
    return [open_store(path) for path in paths]


def follow_content(datasets: list[Any] | None) -> None:
    """Make two caches follow what the files hold and not just their names, in place.

    Axolotl's prepared-dataset cache: its key covers a dataset's config but not its content, so a
    store captured again, or a JSONL edited, would silently train on the old rows. `revision` is
    part of that key and means nothing for a local path: it carries the store's uid, or the hash
    of a local file.

    The cache of `datasets`: for a folder with a dataset card it is keyed by the folder's name
    (seen with datasets 4.8), for listed files by their time stamps too. So the files are listed.
    """
    for dataset in datasets or []:
        path = Path(str(dataset["path"]))
        if is_store(dataset):
            store = open_store(path)
            dataset["revision"] = store.manifest.uid
            dataset["ds_type"] = "parquet"
            dataset["data_files"] = [str(file.resolve()) for file in store.parquet_files]
        elif path.is_file() and not dataset.get("revision"):
            with path.open("rb") as file:
                dataset["revision"] = hashlib.file_digest(file, "sha256").hexdigest()


def all_stores(cfg: Any) -> list[TeacherStore]:
    """Every store a run reads: those of `datasets`, then those only in `test_datasets`."""
    return open_stores([*(cfg.datasets or []), *(cfg.test_datasets or [])])
