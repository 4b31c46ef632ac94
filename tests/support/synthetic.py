"""A store of made-up records, reproducible row by row, for tests of files and kills."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.store import Manifest, RecordBatch, StoreWriter, encoding, new_manifest
from axolotl_distill.store.sealed import seal_of

VOCAB = 5000
TEMPERATURES = [1.0, 2.0]
LAYERS, DEPTH, WIDTH = [1, 4], 6, 5
"""Of hidden states, which a kind has beside it as in nucleus+int8"""


def manifest(kind: str = "nucleus", rows: int = 40, **changes: Any) -> Manifest:
    """The header of a store of the first `rows` rows."""
    kind, _, dtype = (whole := kind).partition("+")
    payload = {
        "topk": {"kind": "topk", "k": 6},
        "nucleus": {"kind": "nucleus", "p": 0.9, "max_k": 9},
        "sampled": {"kind": "sampled", "draws": 12, "temperature": 1.0, "seed": 0},
    }[kind]
    payloads = [payload, about_hidden(dtype)] if dtype else [payload]
    header = {
        "vocab_size": VOCAB,
        "payloads": payloads,
        "temperatures": [] if kind == "sampled" else TEMPERATURES,
        "sequence_len": 4096,
        "tokenizer": {"fingerprint": "f" * 64, "name": "made-up"},
        "teacher": {"name": "made-up", "dtype": "float32"},
        "source": about_rows(row(index, whole) for index in range(rows)),
    }
    return new_manifest(**{**header, **changes})


def about_hidden(dtype: str) -> dict[str, Any]:
    return {"kind": "hidden", "layers": LAYERS, "depth": DEPTH, "width": WIDTH, "dtype": dtype}


def hidden_states(index: int, records: int) -> np.ndarray:
    """fp32 [records, layers, WIDTH] of row `index`, of very different sizes."""
    rng = np.random.default_rng([index, 77])
    sizes = 10.0 ** rng.integers(-3, 6, (records, len(LAYERS), 1))
    return (sizes * rng.standard_normal((records, len(LAYERS), WIDTH))).astype(np.float32)


def about_rows(rows: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """What a manifest says of the rows that are to be captured."""
    rows = [made["labels"] if made else [] for made in rows]
    supervised = sum(label != -100 for labels in rows for label in labels[1:])
    return {"fingerprint": "s" * 64, "num_rows": len(rows), "supervised": supervised}


def row(index: int, kind: str) -> dict[str, Any] | None:
    """Row `index`, always the same; every seventh has nothing to store."""
    if index % 7 == 3:
        return None
    kind, _, dtype = kind.partition("+")
    rng = np.random.default_rng([index, len(kind)])
    length = int(rng.integers(4, 40))
    ids = rng.integers(0, VOCAB, length)
    labels = np.where(np.arange(length) < 2, -100, ids)
    records = length - 2
    if kind == "sampled":
        parts = []
        for _ in range(records):
            draws, counts = np.unique(rng.integers(0, VOCAB, 12), return_counts=True)
            counts *= encoding.parts(VOCAB, 12) // 12
            parts.append(encoding.encode_counts(draws, counts, VOCAB))
    else:
        lengths = np.full(records, 6) if kind == "topk" else rng.integers(1, 10, records)
        parts = [
            encoding.encode_logprobs(
                rng.choice(VOCAB, n, replace=False),
                np.log(-np.sort(-rng.dirichlet(np.ones(n + 1))[:n])),
                VOCAB,
            )
            for n in lengths
        ]
    columns = {"entries": np.concatenate(parts)}
    if kind == "sampled":
        columns["entropy"] = rng.integers(0, 8700, records).astype(np.int16)
    else:
        columns["tail"] = rng.integers(-32768, 32768, (records, 2)).astype(np.int16)
        # The tail at T = 1 is what the entries leave.
        held = [np.exp(encoding.decode_logprobs(part, VOCAB)[1]).sum() for part in parts]
        columns["tail"][:, 0] = encoding.encode_tail(np.log1p(-np.array(held)), np.log(held))
    if dtype:
        import torch

        from axolotl_distill.capture.hidden import hidden_columns

        states = torch.from_numpy(hidden_states(index, records))
        columns |= hidden_columns(states, dtype, index)
    return {
        "source_row": index,
        "row_id": f"row-{index}",
        "input_ids": ids.tolist(),
        "labels": labels.tolist(),
        "text": f"text {index}",
        "records": RecordBatch(columns, np.array([len(part) for part in parts])),
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
    with StoreWriter.create_or_resume(path, manifest(kind, rows)) as writer:
        fill(writer, kind, rows, every)
    return path


def edit_manifest(
    store: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = True
) -> None:
    """Change what a manifest says; it is sealed again unless the seal is to show the change."""
    values = json.loads((store / "manifest.json").read_text())
    change(values)
    if seal:
        values["seal"] = seal_of(values)
    (store / "manifest.json").write_text(json.dumps(values))


def rehash(store: Path, name: str) -> None:
    """Make a manifest agree with a file that was changed."""

    def change(values: dict[str, Any]) -> None:
        data = (store / name).read_bytes()
        about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        next(s for s in values["shards"] if name in s["files"])["files"][name] = about

    edit_manifest(store, change)
