"""The weights of a checkpoint as byte ranges of its safetensors files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from axolotl_distill.disk.atomic import atomically, write_atomically
from axolotl_distill.errors import CheckpointError

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
BLOCK = 16 << 20
MAX_HEADER = 100 << 20
METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, as raw bytes of any type: `size` bytes from `begin` of `file`, or `data`.

    dtype  as safetensors writes it: BF16, F32, …
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    size: int
    data: bytes | None = None

    def read(self) -> bytes:
        """Its bytes, little-endian, in row-major order."""
        if self.data is not None:
            return self.data
        with self.file.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.size)


Stored = dict[str, StoredTensor]


def stored_tensors(folder: Path) -> Stored:
    """Every tensor of a checkpoint by its name, in the order of the files; reads headers only.

    Raises CheckpointError where there are no safetensors, and for files that are not whole.
    """
    if (folder / WHOLE).is_file():
        return tensors_of(folder / WHOLE)
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".gguf"))
        raise CheckpointError(
            f"{folder} has neither {WHOLE} nor {INDEX}"
            + (f", but {', '.join(others[:4])}" if others else "")
            + ". Name a folder with the weights as safetensors: `hf download NAME --local-dir "
            "FOLDER`, or load other weights with transformers and `save_pretrained` them."
        )
    try:
        places: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{folder / INDEX} has no `weight_map`: {error}") from error
    found: Stored = {}
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX} names {name!r}, which is not in its folder.")
        found |= tensors_of(folder / name)
    if missing := places.keys() - found.keys():
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors that {INDEX} names are in no file, as "
            f"{min(missing)}. Copy or download the checkpoint again."
        )
    return found


def tensors_of(path: Path) -> Stored:
    """The tensors of one safetensors file. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, size - 8):
                raise ValueError(f"its header would be {length} bytes long")
            header = json.loads(file.read(length))
        header.pop(METADATA, None)
        found = {name: _located(path, 8 + length, size, **about) for name, about in header.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}. Copy or download it again."
        ) from error
    return found


def _located(
    path: Path, start: int, end: int, *, dtype: str, shape: list[int], data_offsets: list[int]
) -> StoredTensor:
    first, last = data_offsets
    if not 0 <= first <= last <= end - start:
        raise ValueError(f"a tensor lies at {data_offsets} of {end - start} bytes")
    return StoredTensor(dtype, tuple(shape), path, start + first, last - first)


def write_tensors(folder: Path, tensors: Stored, most: int = SHARD_BYTES) -> None:
    """A checkpoint's weights in shards of at most `most` bytes, or one larger tensor, and their
    index. Memory: one block of 16 MiB."""
    shards: list[Stored] = [{}]
    room = most
    for name, tensor in tensors.items():
        if tensor.size > room and shards[-1]:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= tensor.size
    if len(shards) == 1:
        write_file(folder / WHOLE, shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.size for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write_file(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """One safetensors file. Those of the widest elements come first, as other writers have it, so
    that each begins at a multiple of its element's size."""
    ordered = dict(sorted(tensors.items(), key=lambda item: -_element(item[1])))
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    at = 0
    for name, tensor in ordered.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        at += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomically(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered.values():
            if tensor.data is not None:
                out.write(tensor.data)
            else:
                _copy(tensor, out)


def write_json(path: Path, values: Any) -> None:
    """As transformers writes its own files."""
    write_atomically(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def json_of(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_bytes())


def _element(tensor: StoredTensor) -> int:
    return tensor.size // max(1, prod(tensor.shape))


def _copy(tensor: StoredTensor, out: Any) -> None:
    left = tensor.size
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        while left:
            block = file.read(min(BLOCK, left))
            if not block:
                raise CheckpointError(f"{tensor.file} became shorter while it was read.")
            out.write(block)
            left -= len(block)


def names_of(tensors: Sequence[str], most: int = 3) -> str:
    """A few names, for a message."""
    more = f" and {len(tensors) - most} more" if len(tensors) > most else ""
    return ", ".join(tensors[:most]) + more
