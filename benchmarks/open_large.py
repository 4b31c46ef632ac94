"""What opening a store and its first batch cost, from 1 GB to 1 TB of records.

    python benchmarks/open_large.py

One real shard of 64 MB is every shard of the store, by hard links and on an address by one file
under each name, so that a terabyte takes 64 MB; headers, hashes and records are what they should
be. A local store is opened as on any day after the first, when its hashes were checked; the first
time all of it is read. One at an address (file://) starts with an empty cache, but for its rows.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import keep

from axolotl_distill.store import (
    CachePlace,
    Manifest,
    RecordBatch,
    StoreWriter,
    encoding,
    new_manifest,
    open_store,
)
from axolotl_distill.store.checked import _Memory, check_sizes
from axolotl_distill.store.schema import shard_name

VOCAB, K, RECORDS = 49_152, 64, 250_000
ROWS, LENGTH = 100, 2501


def one_shard(path: Path) -> Manifest:
    """A store of one shard of 64 MB: 100 rows, 64 entries a record."""
    rng = np.random.default_rng(0)
    probabilities = np.sort(rng.dirichlet(np.ones(K + 1), 100)[:, :K], axis=1)[:, ::-1]
    ids = np.stack([rng.choice(VOCAB, K, replace=False) for _ in range(100)])
    entries = encoding.encode_logprobs(ids, np.log(probabilities), VOCAB)
    held = probabilities.sum(1)
    tail = encoding.encode_tail(np.log1p(-held), np.log(held))
    manifest = new_manifest(
        vocab_size=VOCAB,
        payloads=[{"kind": "topk", "k": K}],
        temperatures=[1.0],
        sequence_len=LENGTH,
        tokenizer={"fingerprint": "-", "name": "-"},
        teacher={"name": "-"},
        source={"fingerprint": "-", "num_rows": ROWS, "supervised": RECORDS},
    )
    with StoreWriter.create_or_resume(path, manifest) as writer:
        for row in range(ROWS):
            tokens = rng.integers(0, VOCAB, LENGTH).tolist()
            columns = {
                "entries": np.tile(entries.reshape(-1), 25),
                "tail": np.tile(tail[:, None], (25, 1)),
            }
            writer.append(
                source_row=row,
                row_id=str(row),
                input_ids=tokens,
                labels=tokens,
                text="",
                records=RecordBatch(columns, np.full(LENGTH - 1, K)),
            )
    return open_store(path).manifest


def many_shards(path: Path, one: Path, count: int) -> Manifest:
    """The same shard `count` times."""
    values: dict[str, Any] = Manifest.load(one).model_dump()
    first = values["shards"][0]
    shards = []
    for folder in ("data", "teacher"):
        (path / folder).mkdir(parents=True)
    for number in range(count):
        name = shard_name(number)
        files = {}
        for file, about in first["files"].items():
            renamed = file.replace(first["name"], name)
            os.link(one / file, path / renamed)
            files[renamed] = about
        start = {"first_record": number * RECORDS, "source_start": number * ROWS}
        stop = {"source_stop": (number + 1) * ROWS}
        shards.append({**first, "name": name, "files": files, **start, **stop})
    values["shards"] = shards
    values["source"] |= {"num_rows": count * ROWS, "supervised": count * RECORDS}
    manifest = Manifest.model_validate(values)
    manifest.save(path)
    return manifest


def timed(act: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = act()
    return time.perf_counter() - start, found


def main() -> None:
    results = []
    # Where hard links may be more than ext4's 65,000 a file, two stores are not there at once.
    with tempfile.TemporaryDirectory() as scratch:
        one = Path(scratch) / "one"
        one_shard(one)
        size = sum(file.stat().st_size for file in (one / "teacher").iterdir())
        for count in (16, 160, 1_600, 16_000):
            path = Path(scratch) / f"store-{count}"
            manifest = many_shards(path, one, count)
            _Memory(path, manifest.uid).write(check_sizes(path, manifest))
            rng = np.random.default_rng(count)
            index = rng.integers(0, manifest.num_records, 8 * 512)
            near = rng.integers(0, count)
            few = near * RECORDS + rng.integers(0, RECORDS, 8 * 512)
            opening, store = timed(lambda path=path: open_store(path))
            first, _ = timed(lambda store=store, few=few: store.read(few))
            anywhere, _ = timed(lambda store=store, index=index: store.read(index))
            place = CachePlace(Path(scratch) / f"cache-{count}", 10 * size)
            entry = {
                "shards": count,
                "gigabytes_of_records": count * size / 1e9,
                "open_s": opening,
                "first_batch_of_one_shard_s": first,
                "batch_of_4096_records_anywhere_s": anywhere,
            }
            if count <= 1_600:
                open_store(f"file://{path}", cache=place)
                opening, far = timed(
                    lambda path=path, place=place: open_store(f"file://{path}", cache=place)
                )
                first, _ = timed(lambda far=far, few=few: far.read(few))
                entry |= {"remote_open_s": opening, "remote_first_batch_s": first}
            results.append(entry)
            print(json.dumps(entry))
    keep("open_large", results)


if __name__ == "__main__":
    main()
