"""Values as JSON and UTF-8 can hold them, the same for every reader."""

import json
import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, TypeVar, cast

from axolotl_distill.trajectories.row import Row

T = TypeVar("T", bound=Mapping[str, Any])
SEAL = "seal"


def whole(value: Any) -> Any:
    """`value` with U+FFFD for every half of a surrogate pair: UTF-8, and so a request or a file,
    has no halves. Keys of mappings too; what has none comes back as it is."""
    if isinstance(value, str):
        return (
            value
            if is_whole(value)
            else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, dict):
        return {whole(key): whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [whole(inner) for inner in value]
    return value


def is_whole(text: str) -> bool:
    """Whether UTF-8 can hold the text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain(value: Any, name: str) -> Any:
    """What JSON can hold: dates as text, NaN and infinity as null.

    Raises ValueError, naming the column `name`, for bytes and other things that are no text.
    """
    if isinstance(value, dict):
        return {str(key): plain(inner, name) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, name) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes | bytearray) or not hasattr(value, "isoformat"):
        raise ValueError(f"`{name}` holds a {type(value).__name__}, which is not text; remove it")
    return value.isoformat()


def without_nulls(value: Any) -> Any:
    """`value` without the keys whose value is null: Arrow gives every mapping of a column the keys
    of all of them."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def sealed(row: T) -> T:
    """The row, whole, with a check sum of the rest of it as its last field."""
    made = whole({key: value for key, value in row.items() if key != SEAL})
    return cast(T, {**made, SEAL: _sum(made)})


def is_damaged(row: Row) -> bool:
    """Whether the row has a seal that is not that of the rest; a row may have none."""
    return SEAL in row and row[SEAL] != _sum({k: v for k, v in row.items() if k != SEAL})


def _sum(row: Row) -> str:
    text = json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()
