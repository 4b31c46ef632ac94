"""The rows' files: Parquet, of which nothing is unpacked before its size is known."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.signal.batch import IGNORE, supervised_counts
from axolotl_distill.store.manifest import AGAIN, Manifest
from axolotl_distill.store.pages import check_pages
from axolotl_distill.store.schema import Shard

ROW_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        # int64: what Axolotl's own tokenisation gives, or the two could not be concatenated.
        "labels": pa.list_(pa.int64()),
        "teacher_start": pa.int64(),
        "num_records": pa.int32(),
        "text": pa.string(),
    }
)
# Columns of texts, each row another: a dictionary would gain nothing, and could stand for far more
# text than a file has bytes.
TEXTS = ("id", "text")
DICTIONARIES = ["input_ids.list.element", "labels.list.element"]
MAX_FOOTER = 16 << 20
# Uncompressed bytes: two lists of ids with their levels, and the text of the longest tokens there
# are; and what a file needs whatever is in it.
TOKEN_BYTES, ROW_BYTES, FILE_BYTES = 512, 512, 64 << 10
BATCH_ROWS = 1024


def rows_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table of ROW_SCHEMA."""
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


def write_table(rows: pa.Table, file: IO[bytes]) -> None:
    """Rows of ROW_SCHEMA as Parquet."""
    pq.write_table(rows, file, compression="zstd", use_dictionary=DICTIONARIES)


def open_rows(path: Path, manifest: Manifest, shard: Shard) -> pq.ParquetFile:
    """A shard's rows, of which only the footer and the headers of the pages were read.

    Raises StoreCorruptError where columns, types or the number of rows are not as expected, and
    for a file that would unpack to more than its rows can hold.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 8))
            footer = int.from_bytes(file.read(4), "little")
        if footer > MAX_FOOTER:
            raise ValueError(f"its footer has {footer} bytes")
        found = pq.ParquetFile(path)
        if not found.schema_arrow.equals(ROW_SCHEMA):
            columns = ", ".join(f"{f.name}: {f.type}" for f in list(found.schema_arrow)[:8])
            raise ValueError(f"its columns are {columns[:400]}")
        _check_sizes(found.metadata, manifest, shard)
        with path.open("rb") as file:
            for column in _columns(found.metadata):
                check_pages(file, size, column, column.path_in_schema in TEXTS)
        return found
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise _corrupt(path, error) from error


def check_rows(path: Path, manifest: Manifest, shard: Shard) -> None:
    """Raises StoreCorruptError unless every row is whole: ids and labels of one length and within
    the vocabulary, a record for every supervised token, in the order of the records."""
    record, pointer = 0, manifest.pointer_base + shard.first_record
    columns = ["input_ids", "labels", "teacher_start", "num_records"]
    try:
        with open_rows(path, manifest, shard) as rows:
            for batch in rows.iter_batches(BATCH_ROWS, columns=columns):
                record += _check_batch(batch, manifest, pointer + record)
        if record != shard.records:
            raise ValueError(f"its rows have {record} records, the manifest says {shard.records}")
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise _corrupt(path, error) from error


def _check_sizes(metadata: pq.FileMetaData, manifest: Manifest, shard: Shard) -> None:
    if metadata.num_rows != shard.rows:
        raise ValueError(f"it has {metadata.num_rows} rows, the manifest says {shard.rows}")
    tokens = unpacked = 0
    for column in _columns(metadata):
        unpacked += max(column.total_uncompressed_size, 0)
        if column.path_in_schema.startswith("input_ids"):
            tokens += column.num_values
    if tokens > shard.rows * max(1, manifest.sequence_len):
        raise ValueError(
            f"its {shard.rows} rows have {tokens} tokens, more than `sequence_len` "
            f"{manifest.sequence_len} each"
        )
    most = tokens * TOKEN_BYTES + shard.rows * ROW_BYTES + FILE_BYTES
    if unpacked > most:
        raise ValueError(f"it unpacks to {unpacked} bytes, and {tokens} tokens take {most} at most")


def _columns(metadata: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            yield group.column(index)


def _check_batch(batch: pa.RecordBatch, manifest: Manifest, pointer: int) -> int:
    """How many records its rows have; the first must lie at `pointer`. Raises ValueError."""
    ids, labels = batch["input_ids"], batch["labels"]
    for name in batch.schema.names:
        inner = batch[name].flatten() if name in ("input_ids", "labels") else batch[name]
        if batch[name].null_count or inner.null_count:
            raise ValueError(f"a value of `{name}` is missing")
    lengths = ids.value_lengths().to_numpy()
    if (lengths != labels.value_lengths().to_numpy()).any():
        raise ValueError("a row has not as many labels as input_ids")
    flat_ids, flat_labels = ids.flatten().to_numpy(), labels.flatten().to_numpy()
    known = (flat_ids >= 0) & (flat_ids < manifest.vocab_size)
    allowed = (flat_labels == IGNORE) | ((flat_labels >= 0) & (flat_labels < manifest.vocab_size))
    if not (known.all() and allowed.all()):
        raise ValueError(f"a token id or label is not below the vocabulary, {manifest.vocab_size}")
    counts = batch["num_records"].to_numpy().astype(np.int64)
    if (counts != supervised_counts(flat_labels, lengths)).any():
        raise ValueError("a row's `num_records` is not the number of its supervised tokens")
    starts = pointer + np.concatenate([[0], np.cumsum(counts)[:-1]])
    if (batch["teacher_start"].to_numpy() != starts).any():
        raise ValueError("a row's `teacher_start` does not lead to its first record")
    return int(counts.sum())


def _corrupt(path: Path, error: Exception) -> StoreCorruptError:
    said = " ".join(str(error).split())[:300].removesuffix(".")
    return StoreCorruptError(f"{path} does not hold the rows of its shard: {said}. {AGAIN}")
