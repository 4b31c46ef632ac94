"""`axolotl distill store …`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axolotl_distill.address import is_address
from axolotl_distill.commands.kept import store_line
from axolotl_distill.commands.say import say
from axolotl_distill.errors import StoreError
from axolotl_distill.show import redact
from axolotl_distill.store import Manifest, open_store
from axolotl_distill.store.rearrange import merge, reshard, split
from axolotl_distill.store.transfer import pull, push


def merged(stores: Sequence[str], output: str) -> dict[str, Any]:
    """See `merge`. Returns what --json prints, as those below do."""
    return _told(output, merge([open_store(store) for store in stores], _local(output)))


def parted(store: str, parts: int, output: str) -> dict[str, Any]:
    made = split(open_store(store), _local(output), parts)
    named = {f"{output}/part-{number:05d}": manifest for number, manifest in enumerate(made)}
    return {"stores": [_told(name, manifest) for name, manifest in named.items()]}


def resharded(store: str, shard_records: int, output: str) -> dict[str, Any]:
    return _told(output, reshard(open_store(store), _local(output), shard_records))


def pushed(store: str, url: str) -> dict[str, Any]:
    opened = open_store(_local(store))
    files = push(opened, url)
    where = redact(url)
    say(f"{where}: {store_line(opened.manifest)}")
    say(f"{files['sent']} files sent, {files['found']} were there")
    return {"store": store, "address": where, **files}


def pulled(url: str, output: str) -> dict[str, Any]:
    return _told(output, pull(url, _local(output)).manifest)


def _local(path: str) -> Path:
    """Raises StoreError for an address."""
    if is_address(path):
        raise StoreError(
            f"{redact(path)} is an address, and a local folder is needed here: `axolotl distill "
            "store pull ADDRESS FOLDER` brings a store, `store push FOLDER ADDRESS` sends one."
        )
    return Path(path)


def _told(output: str, manifest: Manifest) -> dict[str, Any]:
    say(f"{output}: {store_line(manifest)}, {len(manifest.shards)} shards")
    return {
        "output": output,
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "shards": len(manifest.shards),
        "bytes_of_records": manifest.bytes_of_records,
    }
