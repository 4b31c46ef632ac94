"""Who a teacher is, and which weights it has: two models of one name are told apart. Needs no
torch."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError

UNKNOWN = "not known"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")
# Beside the weights, what decides how they are run; code that a checkpoint brings counts too.
SETTINGS = ("config.json", ".index.json", ".py")
# What training leaves beside a model.
NO_MATTER = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt")
NO_SETTINGS = ("tokenizer_config.json", "generation_config.json", "preprocessor_config.json")
ADAPTER = "adapter_config.json"
# A file up to this size is read whole; of a larger one BLOCKS blocks, evenly spaced.
WHOLE = 256 << 20
BLOCKS, BLOCK = 2048, 4096
MAX_BASES = 8


def identity(teacher: TeacherArgs) -> dict[str, Any]:
    """What tells this teacher from every other: its name, its weights, and what is done to them.

    Which weights a server has it does not tell. Raises what `weights_of` does.
    """
    about: dict[str, Any] = {"name": teacher.model}
    if teacher.server is not None:
        tempered = {} if teacher.tempered == 1.0 else {"temperature": teacher.tempered}
        return {**about, "server": teacher.server.engine, **tempered, "weights": UNKNOWN}
    weights = weights_of(teacher.model, teacher.revision)
    if teacher.adapter is not None:
        # Whatever base the adapter was made for: here it stands on `model`.
        weights += "+" + _weights(teacher.adapter, None, bases=0)
    for key in ("adapter", "quantization"):
        if getattr(teacher, key) is not None:
            about[key] = getattr(teacher, key)
    return {**about, "dtype": teacher.dtype, "weights": weights}


def weights_of(path: str, revision: str | None = None) -> str:
    """A name of the weights behind `path`, the same as long as they are the same.

    A folder or file    "sha256:…" over the names, sizes and content of its weights and settings.
                        Files above 256 MB are sampled: their beginning (the header), their end and
                        2,048 blocks of 4 KiB between, so that 140 GB cost some 0.3 GB of reading;
                        a change that lies between all blocks is not seen. An adapter brings the
                        weights of its base.
    A name on the hub   "hub:" and the commit that the name stands for; asks the hub, or its cache.

    UNKNOWN where there is neither. Raises CaptureError for a file that cannot be read.
    """
    return _weights(path, revision, MAX_BASES)


def content_of(path: str) -> str:
    """sha256, hex, of all the bytes of a file, or of all files of a folder and their names."""
    try:
        return _digest(Path(path), lambda name: True, whole=True).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _weights(path: str, revision: str | None, bases: int) -> str:
    place = Path(path).expanduser()
    if not place.exists():
        return _on_the_hub(path, revision)
    try:
        digest = _digest(place, _counts, whole=False)
        config = place / ADAPTER
        if config.is_file() and bases:
            base = json.loads(config.read_bytes())
            name = base.get("base_model_name_or_path") if isinstance(base, dict) else None
            if isinstance(name, str) and name:
                digest.update(_weights(name, base.get("revision"), bases - 1).encode())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return f"sha256:{digest.hexdigest()}"


def _on_the_hub(name: str, revision: str | None) -> str:
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    for file in ("config.json", ADAPTER, "README.md"):
        try:
            found = Path(hf_hub_download(name, file, revision=revision))
        except HFValidationError:
            return UNKNOWN
        except (OSError, ValueError, HTTPError):
            continue
        return f"hub:{found.parent.name}"
    return UNKNOWN


def _counts(name: str) -> bool:
    base = name.rpartition("/")[2]
    if base in (*NO_MATTER, *NO_SETTINGS) or base.startswith("rng_state"):
        return False
    return base.endswith((*WEIGHTS, *SETTINGS))


def _digest(place: Path, counts: Callable[[str], bool], *, whole: bool) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name, file in _files(place):
        if not counts(name):
            continue
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with file.open("rb") as data:
            if whole or size <= WHOLE:
                digest.update(hashlib.file_digest(data, "sha256").digest())
                continue
            for number in range(BLOCKS + 1):
                data.seek(min(number * size // BLOCKS, size - BLOCK))
                digest.update(data.read(BLOCK))
    return digest


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """(name within the folder, file), in order; of a file only itself."""
    if place.is_file():
        yield place.name, place
        return
    for folder, folders, names in os.walk(place):
        # What training leaves beside a model, and what tools hide, is not the model.
        folders[:] = sorted(f for f in folders if not f.startswith((".", "checkpoint-")))
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file():
                yield file.relative_to(place).as_posix(), file


def _unreadable(path: str, error: Exception) -> CaptureError:
    return CaptureError(
        f"{path}: its files cannot be read, so that its weights could not be told from others: "
        f"{error}. Mend its permissions or copy it again."
    )
