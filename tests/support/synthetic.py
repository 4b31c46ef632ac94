"""A store of made-up records, reproducible row by row, for tests of files and kills."""

from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.store import Manifest, StoreWriter, encoding, new_manifest

VOCAB = 5000
TEMPERATURES = [1.0, 2.0]


def manifest(kind: str = "nucleus", **changes: Any) -> Manifest:
    method = {
        "topk": {"kind": "topk", "k": 6},
        "nucleus": {"kind": "nucleus", "p": 0.9, "max_k": 9},
        "sampled": {"kind": "sampled", "draws": 12, "temperature": 1.0, "seed": 0},
    }[kind]
    header = {
        "vocab_size": VOCAB,
        "method": method,
        "temperatures": TEMPERATURES,
        "sequence_len": 64,
        "tokenizer": {"fingerprint": "f" * 64, "name": "made-up"},
        "teacher": {"name": "made-up", "dtype": "float32"},
        "source": {"fingerprint": "s" * 64, "num_rows": 0},
    }
    return new_manifest(**{**header, **changes})


def row(index: int, kind: str) -> dict[str, Any] | None:
    """Row `index`, always the same; every seventh has nothing to store."""
    if index % 7 == 3:
        return None
    rng = np.random.default_rng([index, len(kind)])
    length = int(rng.integers(4, 40))
    ids = rng.integers(0, VOCAB, length)
    labels = np.where(np.arange(length) < 2, -100, ids)
    records = length - 2
    if kind == "sampled":
        parts = []
        for _ in range(records):
            draws, counts = np.unique(rng.integers(0, VOCAB, 12), return_counts=True)
            parts.append(encoding.encode_counts(draws, counts, VOCAB))
    else:
        lengths = np.full(records, 6) if kind == "topk" else rng.integers(1, 10, records)
        parts = [
            encoding.encode_logprobs(
                rng.choice(VOCAB, n, replace=False), -np.sort(rng.exponential(3, n)), VOCAB
            )
            for n in lengths
        ]
    return {
        "source_row": index,
        "row_id": f"row-{index}",
        "input_ids": ids.tolist(),
        "labels": labels.tolist(),
        "text": f"text {index}",
        "entries": np.concatenate(parts),
        "lengths": np.array([len(part) for part in parts]),
        "tail": rng.integers(-32768, 32768, (records, 2)).astype(np.int16),
        "entropy": rng.integers(0, 9000, records).astype(np.int16) if kind == "sampled" else None,
    }


def fill(writer: StoreWriter, kind: str, stop: int, every: int) -> None:
    """Append rows from where the writer is to `stop`, committing each `every` records."""
    for index in range(writer.next_source_row, stop):
        made = row(index, kind)
        if made is None:
            writer.skip(index)
            continue
        writer.append(**made)
        if writer.open_records >= every:
            writer.commit()


def write_store(path: Path, kind: str = "nucleus", rows: int = 40, every: int = 150) -> Path:
    with StoreWriter.create_or_resume(path, manifest(kind)) as writer:
        fill(writer, kind, rows, every)
    return path
