"""`distill.cache`: where shards of stores at an address are kept while they are read."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from axolotl_distill.config.block import Block, PathText, ReadBy

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
    shuffle: Literal["rows", "shards"] = Field(
        "rows",
        description="rows: the order that Axolotl's keys ask for. shards: shards in random order, "
        "`window` of them at a time, and their rows shuffled; each is fetched once an epoch.",
    )
    window: Annotated[int, ReadBy("shuffle", "shards")] = Field(
        8,
        ge=1,
        description="shards: how many of which a batch is made. Three windows must fit `size`.",
    )
