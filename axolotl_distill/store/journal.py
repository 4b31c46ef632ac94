"""shards.jsonl: the shards of a store that is being written, one sealed line each.

Adding a line costs the same whether a store has ten shards or ten thousand. Every line's seal
covers the line before it, the first one's the manifest's seal, so that no line can be changed,
moved, repeated or taken out of the middle unseen.
"""

import json
from pathlib import Path
from typing import Any

from axolotl_distill.disk.atomic import sync_folder
from axolotl_distill.disk.journal import Journal
from axolotl_distill.disk.rows import json_lines
from axolotl_distill.errors import StoreCorruptError
from axolotl_distill.store.sealed import SEAL, seal_of, strict_json

FILE = "shards.jsonl"
MAX_BYTES = 256 << 20


class ShardJournal:
    """Appends to the journal of a store; what a kill tore off its last line is cut away first."""

    def __init__(self, store: Path, seal: str):
        """`seal` is the manifest's. Raises StoreCorruptError as `read_journal` does."""
        _, whole, self._seal = _read(store / FILE, seal)
        self._file = Journal(store / FILE, is_whole=None)
        self._file.cut(whole)
        sync_folder(store)

    def append(self, shard: dict[str, Any]) -> None:
        """Returns when the line is on the disk. Raises OSError; then it is not in the file."""
        seal = seal_of(shard, self._seal)
        line = json.dumps({**shard, SEAL: seal}, separators=(",", ":")).encode() + b"\n"
        self._file.append(line)
        self._seal = seal

    def close(self) -> None:
        self._file.close()


def read_journal(store: Path, seal: str) -> list[dict[str, Any]]:
    """The shards in it, seals held and taken off; none where there is no journal.

    A last line without its line break was being written when its writer was killed, and is not
    there. Raises StoreCorruptError for any other line that is not as it was written.
    """
    return _read(store / FILE, seal)[0]


def _read(path: Path, seal: str) -> tuple[list[dict[str, Any]], int, str]:
    """(shards, bytes of whole lines, the last seal)"""
    if not path.exists():
        return [], 0, seal
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise StoreCorruptError(
            f"{path} is not a journal of shards: it is no file, or larger than {MAX_BYTES} bytes. "
            "Delete the store and capture it again."
        )
    shards: list[dict[str, Any]] = []
    whole = 0
    with path.open("rb") as lines:
        for line in json_lines(lines, strict_json):
            if not line.data.endswith(b"\n"):
                break
            fault, shard = line.fault, line.row
            if shard is not None and shard.pop(SEAL, None) != (seal := seal_of(shard, seal)):
                fault = "it was changed after it was written, or belongs elsewhere"
            if shard is None or fault:
                raise StoreCorruptError(
                    f"{path}, line {line.number} is not as it was written: {fault}. To keep the "
                    "shards before it, delete this line and all below it, and run the same "
                    "`axolotl distill capture` again; or delete the store."
                )
            shards.append(shard)
            whole = line.start + len(line.data)
    return shards, whole, seal
