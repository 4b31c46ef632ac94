"""JSON that says one thing only, and a hash by which it shows that nobody changed it."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

SEAL = "seal"


def strict_json(data: bytes) -> Any:
    """Raises ValueError for what JSON leaves open: a key twice, NaN and infinity, a number too
    large, nesting too deep."""
    try:
        return json.loads(
            data, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def seal_of(values: Mapping[str, Any], before: str = "") -> str:
    """sha256, hex, of `before` followed by the JSON of `values` without their `seal`: keys sorted,
    no spaces, ASCII. `before` chains a line to the one above it."""
    rest = {key: value for key, value in values.items() if key != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256((before + text).encode()).hexdigest()


def uid_of(data: bytes) -> str:
    """The uid of a manifest's bytes, as a message shows it."""
    try:
        return str(strict_json(data)["uid"])[:8]
    except (ValueError, KeyError, TypeError):
        return "damaged"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number
