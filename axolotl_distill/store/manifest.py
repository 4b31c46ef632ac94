"""manifest.json: what a store holds, who made it, and which files count."""

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store.encoding import id_bits

FORMAT = "axolotl-distill-store"
VERSION = 1
FILE = "manifest.json"
TEMPORARY = ".tmp"
RECORD_BITS = 40
TAG_BITS = 22
NOT_COMPARED = ("uid", "created", "generator", "complete", "shards", "terms")


@dataclass
class Shard:
    """One committed shard. Counts, the source rows [start, stop) it covers, and its files."""

    name: str
    rows: int
    records: int
    entries: int
    first_record: int
    source_start: int
    source_stop: int
    files: dict[str, dict[str, Any]]


@dataclass
class Manifest:
    """See docs/store-format.md. The fields down to `tail_estimated` say what a store is made of;
    a capture that resumes must agree with all of them."""

    vocab_size: int
    id_bits: int
    method: dict[str, Any]
    temperatures: list[float]
    sequence_len: int
    tokenizer: dict[str, Any]
    teacher: dict[str, Any]
    source: dict[str, Any]
    tail_estimated: list[float] = field(default_factory=list)
    terms: dict[str, Any] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION
    uid: str = ""
    created: str = ""
    generator: str = ""
    complete: bool = False
    shards: list[Shard] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def num_records(self) -> int:
        return sum(shard.records for shard in self.shards)

    @property
    def num_entries(self) -> int:
        return sum(shard.entries for shard in self.shards)

    @property
    def pointer_base(self) -> int:
        """Added to a record's index it makes a pointer that names this store and no other."""
        tag = int(self.uid[:8], 16) & ((1 << TAG_BITS) - 1)
        return tag << RECORD_BITS

    def differences(self, other: "Manifest") -> list[str]:
        """Names of the header fields in which two manifests differ, identity left out."""
        # Through JSON: one of the two comes from disk, where a tuple has become a list.
        mine, theirs = (json.loads(json.dumps(dataclasses.asdict(m))) for m in (self, other))
        return [name for name in mine if name not in NOT_COMPARED and mine[name] != theirs[name]]

    def save(self, store: Path) -> None:
        """Replace the manifest atomically: what is on disk is the old one or the new one."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        write_atomically(store / FILE, (text + "\n").encode())

    @classmethod
    def load(cls, store: Path) -> "Manifest":
        path = store / FILE
        if not path.is_file():
            raise StoreMissingError(
                f"{store} is not a teacher store: it has no {FILE}. Check the path, or capture "
                "one with `axolotl distill capture CONFIG.yml`."
            )
        try:
            values = json.loads(path.read_bytes())
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, not {FORMAT!r}")
            if values["version"] > VERSION:
                raise StoreError(
                    f"{path} has format version {values['version']}, this release reads up to "
                    f"{VERSION}. Upgrade axolotl-distill."
                )
            shards = [Shard(**shard) for shard in values.pop("shards")]
            known = {f.name for f in dataclasses.fields(cls)}
            return cls(**{k: v for k, v in values.items() if k in known}, shards=shards)
        except StoreError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorruptError(
                f"{path} cannot be read: {error}. Copy it again from where the store was captured."
            ) from error


def new_manifest(
    *,
    vocab_size: int,
    method: dict[str, Any],
    temperatures: list[float],
    sequence_len: int,
    tokenizer: dict[str, Any],
    teacher: dict[str, Any],
    source: dict[str, Any],
    tail_estimated: Sequence[float] = (),
    terms: dict[str, Any] | None = None,
) -> Manifest:
    """The header of a store that is about to be written.

    tail_estimated   those of `temperatures` at which the tail is estimated, not known
    terms            what the teacher's terms say about training on its output
    """
    return Manifest(
        vocab_size=vocab_size,
        id_bits=id_bits(vocab_size),
        method=method,
        temperatures=[float(temperature) for temperature in temperatures],
        sequence_len=sequence_len,
        tokenizer=tokenizer,
        teacher=teacher,
        source=source,
        tail_estimated=[float(temperature) for temperature in tail_estimated],
        terms=terms or {},
        uid=secrets.token_hex(16),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        generator=f"axolotl-distill {_own_version()}",
    )


def write_atomically(path: Path, data: bytes) -> None:
    """A temporary name, fsync, rename, fsync of the folder: whole or not at all."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a file that is already on the disk, and make the rename itself last."""
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _own_version() -> str:
    try:
        return version("axolotl-distill")
    except PackageNotFoundError:
        return "unknown"
