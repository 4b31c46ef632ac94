"""Rows into compressed files of a bounded size."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIX = {"parquet": ".parquet", "jsonl": ".jsonl.gz"}
GROUP = 1024


class Shards:
    """Writes `<stem>-00000-of-00003.parquet` (zstd) or `.jsonl.gz`; the names are final at `close`.

    schema  pyarrow's; jsonl takes its column names from it
    """

    def __init__(self, folder: Path, schema: pa.Schema, kind: str, shard_rows: int):
        self.folder, self.schema, self.kind, self.shard_rows = folder, schema, kind, shard_rows
        self.rows = 0
        self._files: list[Path] = []
        self._buffer: list[dict[str, Any]] = []
        self._writer: Any = None
        self._raw: Any = None  # GzipFile does not close what it writes to

    def write(self, row: dict[str, Any]) -> None:
        if self.rows == len(self._files) * self.shard_rows:
            self._finish()
            self._open()
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) == GROUP:
            self._flush()

    def close(self, stem: str) -> list[Path]:
        """The files, under their final names. No rows, no files."""
        self._finish()
        named = []
        for index, file in enumerate(self._files):
            name = f"{stem}-{index:05d}-of-{len(self._files):05d}{SUFFIX[self.kind]}"
            named.append(file.rename(self.folder / name))
        return named

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{id(self)}-{len(self._files):05d}{SUFFIX[self.kind]}"
        self._files.append(path)
        if self.kind == "parquet":
            self._writer = pq.ParquetWriter(path, self.schema, compression="zstd")
        else:
            # No name and no time in the header: the same rows give the same bytes.
            self._raw = path.open("wb")
            self._writer = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0)

    def _flush(self) -> None:
        if self._buffer and self.kind == "parquet":
            self._writer.write_table(pa.Table.from_pylist(self._buffer, schema=self.schema))
        for row in self._buffer if self.kind == "jsonl" else ():
            self._writer.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._buffer.clear()

    def _finish(self) -> None:
        if self._writer is not None:
            self._flush()
            self._writer.close()
            if self.kind == "jsonl":
                self._raw.close()
        self._writer = None
