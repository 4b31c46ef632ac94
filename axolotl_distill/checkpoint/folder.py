"""A checkpoint's folder: its config, what lies beside its weights, and a copy that is whole or not
there."""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from axolotl_distill.checkpoint.tensors import INDEX, Stored, stored_tensors
from axolotl_distill.disk.scratch import scratch_folder
from axolotl_distill.errors import CheckpointError
from axolotl_distill.teachers.fingerprint import WEIGHTS

CONFIG = "config.json"
CARD = "README.md"
# What training leaves beside a model.
LEFT_BEHIND = ("trainer_state.json", "optimizer", "scheduler", "rng_state", "training_args")


@dataclass(frozen=True)
class Checkpoint:
    """A model in a folder.

    config   as transformers understands it
    written  config.json as it is written
    """

    folder: Path
    config: PretrainedConfig
    written: dict[str, Any]
    tensors: Stored

    def others(self, *left_out: str) -> list[Path]:
        """The files beside the weights: tokenizer, templates, generation config, licence, code."""
        weights = {tensor.file.name for tensor in self.tensors.values()}
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_file()
            and not path.name.startswith(".")
            and path.name not in {CONFIG, CARD, INDEX, *left_out} | weights
            and not path.name.endswith(WEIGHTS)
            and not path.name.startswith(LEFT_BEHIND)
        ]


def open_checkpoint(path: str) -> Checkpoint:
    """Reads its config and the headers of its weights. Raises CheckpointError."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"{path} is no folder. A model on the hub is downloaded first: `hf download {path} "
            "--local-dir FOLDER`."
        )
    try:
        written = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(written, dict):
            raise ValueError("it holds no mapping")
        if "auto_map" in written:
            raise ValueError("it brings code of its own (`auto_map`), which is not run here")
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} is not the config of a model that transformers knows: {error}"
        ) from error
    return Checkpoint(folder, config, written, stored_tensors(folder))


@contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """A folder, to be filled, that appears at `path` when the context ends well.

    Raises CheckpointError where something is at `path`.
    """
    out = Path(path)
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} is there already. Move it away, or name another folder.")
    with scratch_folder(out.absolute().parent, f".{out.name}-") as scratch:
        made = scratch / out.name
        made.mkdir()
        yield made
        os.rename(made, out)


def copy_files(
    files: Collection[Path], folder: Path, copy: Callable[..., Any] = shutil.copy2
) -> None:
    """`copy` is given where each file lies, through links, and where it goes."""
    for path in files:
        copy(path.resolve(), folder / path.name)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bars and reports, of which those who ask here make an error or nothing."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
