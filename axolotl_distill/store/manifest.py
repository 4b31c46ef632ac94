"""manifest.json: what a store holds, who made it, and which files count."""

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import PrivateAttr, ValidationError

from axolotl_distill.disk.atomic import write_atomically
from axolotl_distill.errors import StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.show import without_secrets
from axolotl_distill.store import journal
from axolotl_distill.store.encoding import id_bits
from axolotl_distill.store.payloads import Payload
from axolotl_distill.store.schema import RECORD_BITS, Contents
from axolotl_distill.store.sealed import SEAL, seal_of, strict_json

FORMAT = "axolotl-distill-store"
VERSION = 1
FILE = "manifest.json"
MAX_BYTES = 256 << 20
TAG_BITS = 22
NOT_COMPARED = ("uid", "created", "generator", "complete", "shards", "terms")
# What was found out about the records once a store was begun.
FOUND_LATER = ("teacher.check",)
AGAIN = "Copy the store again from where it was captured, or capture it again."


class Manifest(Contents):
    """What a store says of itself, on disk and in memory."""

    _seal: str = PrivateAttr("")

    @property
    def seal(self) -> str:
        """Of what was last read from or written to the disk."""
        return self._seal

    @property
    def num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def num_records(self) -> int:
        return self.shards[-1].first_record + self.shards[-1].records if self.shards else 0

    @property
    def bytes_of_records(self) -> int:
        """Of the files under teacher/."""
        return sum(shard.files[shard.records_file]["bytes"] for shard in self.shards)

    @property
    def bytes_of_rows(self) -> int:
        """Of the files under data/."""
        return sum(shard.files[shard.rows_file]["bytes"] for shard in self.shards)

    @property
    def bytes_a_record(self) -> float:
        return self.bytes_of_records / max(1, self.num_records)

    @property
    def tempered(self) -> float:
        """The teacher's temperature at what its records say for T = 1; another one than 1 of a
        server that serves a tempered model."""
        return self.teacher.get("temperature", 1.0)

    @property
    def served(self) -> list[float]:
        """`temperatures` as the loss means them."""
        return [temperature * self.tempered for temperature in self.temperatures]

    @property
    def pointer_base(self) -> int:
        """Added to a record's index it makes a pointer that names this store and no other."""
        tag = int(self.uid[:8], 16) & ((1 << TAG_BITS) - 1)
        return tag << RECORD_BITS

    def differences(self, other: "Manifest") -> list[tuple[str, Any, Any]]:
        """(key, mine, theirs) of what two stores are made of; of a mapping, the keys within."""
        mine, theirs = (_header(manifest) for manifest in (self, other))
        return [
            (key, mine.get(key), theirs.get(key))
            for key in {**mine, **theirs}
            if mine.get(key) != theirs.get(key)
        ]

    def save(self, store: Path) -> None:
        """Replace the manifest atomically: what is on disk is the old one or the new one.

        Raises StoreError for one that could not be read again, and OSError.
        """
        values = self.model_dump()
        _validated(type(self), values, StoreError, f"{store / FILE} cannot be written")
        seal = seal_of(values)
        text = json.dumps({**values, SEAL: seal}, indent=1, ensure_ascii=True)
        write_atomically(store / FILE, (text + "\n").encode())
        self._seal = seal

    @classmethod
    def load(cls, store: Path) -> Self:
        """The manifest; of a store that is being written, with the shards of its journal.

        Raises StoreMissingError where there is none, StoreCorruptError for one that is not as it
        was written or that contradicts itself, StoreError for one of a newer release.
        """
        path = store / FILE
        damaged = f"{path} is not a manifest as it was written"
        try:
            if not path.is_file():
                raise StoreMissingError(
                    f"{store} is not a teacher store: it has no {FILE}. Check the path, or "
                    "capture one with `axolotl distill capture CONFIG.yml`."
                )
            if path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            values = _read(path)
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreCorruptError(f"{damaged}: {error}. {AGAIN}") from error
        seal = values.pop(SEAL)
        manifest = _validated(cls, values, StoreCorruptError, damaged)
        if not manifest.complete:
            values["shards"] = journal.read_journal(store, seal)
            manifest = _validated(cls, values, StoreCorruptError, f"{store / journal.FILE}")
        manifest._seal = seal
        return manifest


def new_manifest(
    *,
    vocab_size: int,
    payloads: Sequence[Payload | Mapping[str, Any]],
    temperatures: list[float],
    sequence_len: int,
    tokenizer: dict[str, Any],
    teacher: dict[str, Any],
    source: dict[str, Any],
    tail_estimated: Sequence[float] = (),
    terms: dict[str, Any] | None = None,
) -> Manifest:
    """The header of a store that is about to be written.

    payloads         what a record holds, or each as the manifest has it
    source           fingerprint, num_rows and supervised (tokens, so records) of all that is to
                     be captured; a store that ends with less cannot be closed
    tail_estimated   those of `temperatures` at which the tail is estimated, not known
    terms            what the teacher's terms say about training on its output

    Passwords and keys in addresses are taken out. Raises StoreError for values that make no store.
    """
    values = {
        "format": FORMAT,
        "version": VERSION,
        "uid": secrets.token_hex(16),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "generator": f"axolotl-distill {_own_version()}",
        "complete": False,
        "vocab_size": vocab_size,
        "id_bits": id_bits(vocab_size),
        "payloads": list(payloads),
        "temperatures": [float(temperature) for temperature in temperatures],
        "sequence_len": sequence_len,
        "tokenizer": without_secrets(tokenizer),
        "teacher": without_secrets(teacher),
        "source": without_secrets(source),
        "tail_estimated": [float(temperature) for temperature in tail_estimated],
        "terms": without_secrets(terms or {}),
        "shards": [],
    }
    return _validated(Manifest, values, StoreError, "A store cannot be begun")


def _read(path: Path) -> dict[str, Any]:
    values = strict_json(path.read_bytes())
    if not isinstance(values, dict):
        raise ValueError(f"it is a {type(values).__name__}, not an object")
    if values.get("format") != FORMAT:
        raise ValueError(f"its format is {str(values.get('format'))[:60]!r}, not {FORMAT!r}")
    seen = values.get("version")
    if type(seen) is int and seen > VERSION:
        raise StoreError(
            f"{path} has format version {seen}, this release reads up to {VERSION}. Upgrade "
            "axolotl-distill."
        )
    if values.get(SEAL) != seal_of(values):
        raise ValueError("its seal does not fit: it was changed after it was written")
    return values


M = TypeVar("M", bound=Manifest)


def _validated(model: type[M], values: dict[str, Any], kind: type[StoreError], what: str) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")
        faults = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        remedy = f" {AGAIN}" if kind is StoreCorruptError else ""
        raise kind(f"{what}: {f'`{key}`: ' if key else ''}{said}{faults}.{remedy}") from None


def _header(manifest: Manifest) -> dict[str, Any]:
    """What is compared, mappings flattened by one level, and payloads named by their kinds."""
    values = json.loads(manifest.model_dump_json(exclude=set(NOT_COMPARED)))
    payloads = {payload.pop("kind"): payload for payload in values.pop("payloads")}
    values |= {f"payloads.{kind}": fields for kind, fields in payloads.items()}
    flat: dict[str, Any] = {"payloads": [*payloads]}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": part for key, part in value.items()}
        else:
            flat[name] = value
    return {name: value for name, value in flat.items() if name not in FOUND_LATER}


def _own_version() -> str:
    try:
        return version("axolotl-distill")
    except PackageNotFoundError:
        return "unknown"
