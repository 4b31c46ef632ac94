"""`distill.cache`: where shards of stores at an address are kept while they are read."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

from axolotl_distill.config.block import Block, PathText

UNITS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("KB", "MB", "GB", "TB"), 1)},
    **{unit: 1024**power for power, unit in enumerate(("KIB", "MIB", "GIB", "TIB"), 1)},
}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def byte_count(value: object) -> object:
    """`200GB`, `1.5 TiB` or a number of bytes as bytes. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = SIZE.fullmatch(value.strip())
    unit = found[2].upper().removesuffix("B") + "B" if found and found[2] else ""
    if found is None or unit not in UNITS:
        raise ValueError("must be a size, as in 200GB, 1.5TiB, or a number of bytes")
    return int(float(found[1]) * UNITS[unit])


Bytes = Annotated[int, BeforeValidator(byte_count), Field(ge=1)]


class CacheArgs(Block):
    """The cache of stores whose `path` is an address (s3://, gs://, hf://, …)."""

    folder: PathText | None = Field(
        None,
        description="Default: `axolotl-distill` in Hugging Face's cache home. All processes of a "
        "machine should name one folder, on a disk of its own.",
    )
    size: Bytes | None = Field(
        None,
        description="Most bytes of records in it, as in 200GB. Default: half of what its disk has "
        "free. The rows of a store lie beside them and are not counted.",
    )
