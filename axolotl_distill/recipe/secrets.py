"""Keys and passwords stay out of all that is kept or shown."""

import re
from typing import Any

HIDDEN = "***"
NAMES = re.compile(
    r"(api[-_]?key|password|passwd|secret|authorization|(access|auth|bearer)[-_]?token)$"
)
IN_URL = re.compile(r"(?<=://)[^/?#@\s]+@")  # fmt: skip


def without_secrets(value: Any) -> Any:
    """A copy in which keys that name a secret have no value, and URLs no `user:password@`."""
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(inner, str) and NAMES.search(str(key).lower())
            else without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return IN_URL.sub(f"{HIDDEN}@", value) if isinstance(value, str) else value
