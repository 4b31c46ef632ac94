"""`axolotl distill store …`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axolotl_distill.commands.kept import store_line
from axolotl_distill.commands.say import say
from axolotl_distill.store import Manifest, open_store
from axolotl_distill.store.rearrange import merge, reshard, split


def merged(stores: Sequence[str], output: str) -> dict[str, Any]:
    """See `merge`. Returns what --json prints, as those below do."""
    return _told(output, merge([open_store(store) for store in stores], Path(output)))


def parted(store: str, parts: int, output: str) -> dict[str, Any]:
    made = split(open_store(store), Path(output), parts)
    named = {f"{output}/part-{number:05d}": manifest for number, manifest in enumerate(made)}
    return {"stores": [_told(name, manifest) for name, manifest in named.items()]}


def resharded(store: str, shard_records: int, output: str) -> dict[str, Any]:
    return _told(output, reshard(open_store(store), Path(output), shard_records))


def _told(output: str, manifest: Manifest) -> dict[str, Any]:
    say(f"{output}: {store_line(manifest)}, {len(manifest.shards)} shards")
    return {
        "output": output,
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "shards": len(manifest.shards),
        "bytes_of_records": manifest.bytes_of_records,
    }
