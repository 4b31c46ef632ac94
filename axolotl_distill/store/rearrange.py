"""Stores made of stores: joined, cut into parts, or in shards of another size.

The same rows and records in the same order; what is new are the uid, and so the pointers, and the
shards. A store is written as a capture writes one, by StoreWriter: what is committed survives a
kill, the same call goes on, and nothing is changed in the stores that are read.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from axolotl_distill.errors import StoreError
from axolotl_distill.store.manifest import Manifest, new_manifest
from axolotl_distill.store.payloads import RecordBatch, join_batches
from axolotl_distill.store.reader import TeacherStore
from axolotl_distill.store.rows import open_rows
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.writer import StoreWriter

OUTPUT = "`--output`"
# Records that are filled up to the longest of them at a time.
AT_ONCE = 32_768
MAY_DIFFER = (
    "sequence_len",
    "source.fingerprint",
    "source.num_rows",
    "source.supervised",
    "source.datasets",
    "source.made_of",
    "tokenizer.text",
)
SHOWN = 5
SHOWN_AFTER = 1.5


class Piece(NamedTuple):
    """Rows [first, stop) of a shard."""

    shard: "SourceShard"
    first: int
    stop: int


class SourceShard:
    """A shard of a store that is read."""

    def __init__(self, store: TeacherStore, number: int):
        self.store, self.number = store, number

    @property
    def about(self) -> Shard:
        return self.store.manifest.shards[self.number]

    @cached_property
    def stops(self) -> np.ndarray:
        """int64 [rows], the records up to the end of each row. Raises StoreCorruptError."""
        with self._open() as file:
            counts = file.read(["num_records"])["num_records"].to_numpy()
        return np.cumsum(counts, dtype=np.int64)

    def source_rows(self, first: int, stop: int) -> int:
        """How many rows of the source rows [first, stop) stand for. Those without a supervised
        token, whose places a shard does not tell, count to its end."""
        rows = self.about.source_stop - self.about.source_start
        return (rows if stop == self.about.rows else stop) - first

    def rows(self, piece: Piece) -> pa.Table:
        with self._open() as file:
            return file.read().slice(piece.first, piece.stop - piece.first)

    def records(self, piece: Piece) -> RecordBatch:
        """Raises StoreCorruptError as the store does."""
        first, stop = (int(self.stops[row - 1]) if row else 0 for row in (piece.first, piece.stop))
        manifest, shape = self.store.manifest, self.store.manifest.shape_of(self.about)
        # One part at least, for its columns.
        starts = range(first, stop, AT_ONCE) or [first]
        with self.store.held(self.number) as arrays:
            return join_batches(
                [
                    manifest.payloads.take(
                        arrays, np.arange(start, min(start + AT_ONCE, stop)), shape
                    )
                    for start in starts
                ]
            )

    def _open(self) -> Any:
        store = self.store
        return open_rows(store.path / self.about.rows_file, store.manifest, self.about)


def merge(stores: Sequence[TeacherStore], output: Path) -> Manifest:
    """All rows of `stores`, one store after another, shard by shard as they are.

    Raises StoreError where they were not captured alike, naming what differs, where one is named
    twice, and what StoreWriter does.
    """
    _refuse_sources(stores, output)
    places = [store.path.resolve() for store in stores]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise StoreError(
            f"{twice} is named twice, and all of its rows would be there twice. Name it once."
        )
    header = _merged_header([store.manifest for store in stores])
    whole = [[Piece(shard, 0, shard.about.rows)] for store in stores for shard in _shards(store)]
    return _write(output, header, whole)


def reshard(store: TeacherStore, output: Path, shard_records: int) -> Manifest:
    """The same store in shards that are closed once they have `shard_records` records, as a capture
    closes them. It is said to be captured from the same source, and a capture takes it for its own.
    """
    _refuse_sources([store], output)
    header = _header(store.manifest)
    rows = (Piece(shard, 0, shard.about.rows) for shard in _shards(store))
    return _write(output, header, _closed_after(shard_records, rows))


def split(store: TeacherStore, output: Path, parts: int) -> list[Manifest]:
    """`parts` stores, OUTPUT/part-00000 and on, each with the next rows and about as many records.

    Raises StoreError where there are fewer rows than parts.
    """
    _refuse_sources([store], output)
    if parts > store.num_rows:
        raise StoreError(
            f"{store.path} has {store.num_rows} rows, which do not make {parts} stores. Ask for "
            "fewer (`--parts`)."
        )
    made = []
    for number, pieces in enumerate(_parts(store, parts)):
        header = _part_header(store.manifest, pieces)
        whole = [[piece] for piece in pieces]
        made.append(_write(output / f"part-{number:05d}", header, whole))
    return made


def _shards(store: TeacherStore) -> Iterator[SourceShard]:
    return (SourceShard(store, number) for number in range(len(store.manifest.shards)))


def _closed_after(shard_records: int, pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    taken: list[Piece] = []
    records = 0
    for shard, first, stop in pieces:
        while first < stop:
            before = int(shard.stops[first - 1]) if first else 0
            wanted = before + shard_records - records
            # The first row that fills the shard, or all that are left.
            last = min(stop, int(np.searchsorted(shard.stops, wanted)) + 1)
            taken.append(Piece(shard, first, last))
            records += int(shard.stops[last - 1]) - before
            first = last
            if records >= shard_records:
                yield taken
                taken, records = [], 0
    if taken:
        yield taken


def _parts(store: TeacherStore, parts: int) -> Iterator[list[Piece]]:
    """Each ends with the row at which its share of all records is reached, and leaves a row for
    each that follows."""
    taken: list[Piece] = []
    made = rows = 0
    for shard in _shards(store):
        first = 0
        while first < shard.about.rows:
            share = store.num_records * (made + 1) // parts - shard.about.first_record
            last = min(shard.about.rows, int(np.searchsorted(shard.stops, share)) + 1)
            most = store.num_rows - (parts - made - 1) - rows
            last = max(first + 1, min(last, first + most))
            is_full = shard.stops[last - 1] >= share or last - first == most
            taken.append(Piece(shard, first, last))
            rows, first = rows + last - first, last
            if is_full and made < parts - 1:
                yield taken
                taken, made = [], made + 1
    yield taken


def _write(output: Path, header: Manifest, shards: Iterable[list[Piece]]) -> Manifest:
    writer = StoreWriter.create_or_resume(output, header, OUTPUT)
    done = list(writer.manifest.shards)
    with tqdm(
        total=header.source["supervised"], unit=" records", desc=str(output), delay=SHOWN_AFTER
    ) as progress:
        try:
            source_stop = 0
            for number, pieces in enumerate(shards):
                source_stop += sum(
                    piece.shard.source_rows(piece.first, piece.stop) for piece in pieces
                )
                if number < len(done):
                    _check_done(output, done[number], pieces, source_stop)
                else:
                    rows = pa.concat_tables([piece.shard.rows(piece) for piece in pieces])
                    records = join_batches([piece.shard.records(piece) for piece in pieces])
                    writer.append_shard(rows, records, source_stop)
                progress.update(writer.manifest.shards[number].records)
        except BaseException:
            writer.abandon()
            raise
        if writer.manifest.complete:
            writer.abandon()
        else:
            writer.close()
    return writer.manifest


def _check_done(output: Path, done: Shard, pieces: list[Piece], source_stop: int) -> None:
    """Raises StoreError where a shard that is there is not the one that would be made now."""
    rows = sum(piece.stop - piece.first for piece in pieces)
    if (done.rows, done.source_stop) != (rows, source_stop):
        raise StoreError(
            f"{output} was begun in other shards: {done.name} has {done.rows} rows, and {rows} "
            f"would be there now. Ask for what was asked then, use another folder ({OUTPUT}), or "
            "delete this one."
        )


def _refuse_sources(stores: Sequence[TeacherStore], output: Path) -> None:
    place = output.resolve()
    for store in stores:
        source = store.path.resolve()
        if place == source or source in place.parents:
            raise StoreError(
                f"{output} is, or lies in, a store that is read. Name another folder ({OUTPUT})."
            )


def _header(manifest: Manifest, **changes: Any) -> Manifest:
    """That of a new store with what `manifest` says of its making."""
    kept = {
        name: getattr(manifest, name)
        for name in (
            *("vocab_size", "temperatures", "sequence_len", "tokenizer", "teacher", "source"),
            *("tail_estimated", "terms"),
        )
    }
    return new_manifest(**{**kept, "payloads": manifest.payloads.each, **changes})


def _part_header(manifest: Manifest, pieces: Sequence[Piece]) -> Manifest:
    rows = sum(piece.shard.source_rows(piece.first, piece.stop) for piece in pieces)
    start = pieces[0].shard.about.source_start + pieces[0].first
    records = sum(
        int(piece.shard.stops[piece.stop - 1])
        - (int(piece.shard.stops[piece.first - 1]) if piece.first else 0)
        for piece in pieces
    )
    made_of = {
        "fingerprint": manifest.source["fingerprint"],
        "rows": [start, start + rows],
    }
    return _header(manifest, source=_source(manifest, rows, records, [made_of]))


def _merged_header(manifests: Sequence[Manifest]) -> Manifest:
    first = manifests[0]
    for number, manifest in enumerate(manifests[1:], 2):
        differing = [
            f"{key} is {_short(mine)} in the first and {_short(theirs)} in store {number}"
            for key, mine, theirs in first.differences(manifest)
            if key not in MAY_DIFFER
        ]
        if differing:
            raise StoreError(
                f"These stores were not captured alike and cannot be one: "
                f"{'; '.join(differing[:SHOWN])}. Train on them side by side (two entries of "
                "`datasets`), or capture one of them again."
            )
    made_of = [
        {"fingerprint": manifest.source["fingerprint"], "rows": [0, manifest.source["num_rows"]]}
        for manifest in manifests
    ]
    datasets = [name for each in manifests for name in each.source.get("datasets", [])]
    source = _source(
        first,
        sum(manifest.source["num_rows"] for manifest in manifests),
        sum(manifest.source["supervised"] for manifest in manifests),
        made_of,
    )
    if datasets:
        source["datasets"] = list(dict.fromkeys(datasets))
    return _header(
        first,
        source=source,
        sequence_len=max(manifest.sequence_len for manifest in manifests),
        tokenizer={**first.tokenizer, **_texts(manifests)},
        terms=_terms(manifests),
    )


def _source(
    manifest: Manifest, rows: int, records: int, made_of: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is said of the source of a store that is made of others'."""
    text = json.dumps(made_of, sort_keys=True)
    return {
        **manifest.source,
        "fingerprint": hashlib.sha256(text.encode()).hexdigest(),
        "num_rows": rows,
        "supervised": records,
        "made_of": made_of,
    }


def _texts(manifests: Sequence[Manifest]) -> dict[str, dict[str, int]]:
    """`tokenizer.text` of all. Raises StoreError where one token has two ids, or one id two."""
    found: dict[str, int] = {}
    for manifest in manifests:
        for token, number in manifest.tokenizer.get("text", {}).items():
            named = {other: name for name, other in found.items()}
            if found.get(token, number) != number or named.get(number, token) != token:
                raise StoreError(
                    f"These stores cannot be one: the added token {token!r} is {number} in one, "
                    f"and another has {named.get(number, token)!r} as {found.get(token, number)}."
                )
            found[token] = number
    return {"text": found} if any("text" in each.tokenizer for each in manifests) else {}


def _terms(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """What was looked up, of stores that looked at different times all that they were told."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for manifest in manifests for key in manifest.terms):
        values: list[Any] = []
        for manifest in manifests:
            value = manifest.terms.get(key)
            if value not in values:
                values.append(value)
        found[key] = values[0] if len(values) == 1 else values
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"
