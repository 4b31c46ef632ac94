"""The records' files: safetensors, mapped into memory, and nothing in them taken on trust."""

from itertools import pairwise
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store.manifest import AGAIN, Manifest
from axolotl_distill.store.payloads import Arrays
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.sealed import strict_json

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
"""What a payload may hold, by safetensors' names"""
MAX_HEADER = 1 << 16
Place = tuple[str, tuple[int, ...], int, int]
"""dtype, shape, first byte, byte after the last"""
Places = dict[str, dict[str, Place]]
"""shard -> tensor -> where it lies in the shard's file"""


def map_tensors(path: Path, manifest: Manifest, shard: Shard, seen: Places | None = None) -> Arrays:
    """Every tensor of a shard as a read-only memory map; reads only the header.

    seen  what it says, by shard, where it was read before; what is read now is added

    Raises StoreMissingError, and StoreCorruptError for a file whose size, header, names, types,
    shapes or places are not what the manifest makes of them.
    """
    try:
        size, said = path.stat().st_size, shard.files[shard.records_file]["bytes"]
        if size != said:
            raise ValueError(f"it has {size} bytes, the manifest says {said}")
        with path.open("rb") as file:
            data = np.frombuffer(mmap(file.fileno(), 0, access=ACCESS_READ), np.uint8)
        seen = {} if seen is None else seen
        if shard.name not in seen:
            seen[shard.name] = _header(data, manifest, shard)
        return {
            name: data[begin:end].view(DTYPES[dtype]).reshape(shape)
            for name, (dtype, shape, begin, end) in seen[shard.name].items()
        }
    except FileNotFoundError as error:
        raise StoreMissingError(f"{path} is missing. {AGAIN}") from error
    except (ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreCorruptError(
            f"{path} is not the safetensors file of its shard: {error}. {AGAIN}"
        ) from error


def _header(data: np.ndarray, manifest: Manifest, shard: Shard) -> dict[str, Place]:
    """Where each tensor lies in a file. Raises ValueError."""
    start = 8 + int(data[:8].view("<u8")[0]) if data.size >= 8 else data.size + 1
    if start > min(data.size, 8 + MAX_HEADER):
        raise ValueError("its header is longer than it can be")
    places = _places(strict_json(bytes(data[8:start])), manifest, shard, data.size - start)
    return {
        name: (dtype, shape, start + begin, start + end)
        for name, (dtype, shape, begin, end) in places.items()
    }


def _places(header: Any, manifest: Manifest, shard: Shard, size: int) -> dict[str, Place]:
    """Bytes counted from the end of the header. Raises ValueError."""
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    expected = manifest.payloads.tensors(manifest.shape_of(shard), set(header))
    if set(header) != set(expected):
        raise ValueError(f"it holds {sorted(header)[:8]}, not {sorted(expected)}")
    places = {}
    for name, (dtype, shape) in expected.items():
        wanted = {"dtype": dtype, "shape": list(shape)}
        about = header[name]
        seen = about.get("data_offsets") if isinstance(about, dict) else None
        if not isinstance(seen, list) or [type(at) for at in seen] != [int, int]:
            raise ValueError(f"{name} has no `data_offsets` of two numbers")
        if {**wanted, "data_offsets": seen} != about:
            raise ValueError(f"{name} is {str(about)[:120]}, not {wanted}")
        if seen[1] - seen[0] != DTYPES[dtype].itemsize * prod(shape):
            raise ValueError(f"{name} lies at {seen}, which is not its size")
        places[name] = (dtype, shape, *seen)
    edges = sorted((begin, end) for _, _, begin, end in places.values())
    if (
        edges[0][0] != 0
        or edges[-1][1] != size
        or any(left[1] != right[0] for left, right in pairwise(edges))
    ):
        raise ValueError(f"its tensors do not lie one after another in {size} bytes")
    return places
