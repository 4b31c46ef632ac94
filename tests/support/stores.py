"""Builds small real stores in-process, without the capture command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.synthetic import about_rows

from axolotl_distill.host.datasets.store import StoreStrategy
from axolotl_distill.store import (
    RecordBatch,
    StoreWriter,
    describe_tokenizer,
    encoding,
    new_manifest,
)

Row = dict[str, Any]


def random_rows(tokenizer: Any, lengths: list[int], seed: int | None = None) -> list[Row]:
    """Rows of random real tokens; the first third of each is a prompt, with a masked gap later."""
    seed = int(np.random.SeedSequence().entropy % 2**31) if seed is None else seed
    print(f"random_rows seed: {seed}")
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = rng.integers(20, len(tokenizer), length)
        labels = ids.copy()
        labels[: max(1, length // 3)] = -100
        if length > 30:
            labels[length - 9 : length - 6] = -100
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def _ids_of(rows: list[Row]) -> set[int]:
    return {token for row in rows for token in row["input_ids"]}


def topk_records(
    logits_RV: torch.Tensor, k: int, temperatures: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(entries uint32 [R*k], tail int16 [R, nT]) straight from the definition, in float64."""
    logits_RV = logits_RV.double()
    top = logits_RV.log_softmax(-1).topk(k)
    vocab_size = logits_RV.shape[-1]
    entries = encoding.encode_logprobs(top.indices.numpy(), top.values.numpy(), vocab_size)
    tails = []
    for temperature in temperatures:
        logprobs = (logits_RV / temperature).log_softmax(-1)
        head = logprobs.gather(1, top.indices).logsumexp(-1)
        rest = logprobs.scatter(1, top.indices, -torch.inf).logsumexp(-1)
        tails.append(encoding.encode_tail(rest.numpy(), head.numpy()))
    return entries.reshape(-1), np.stack(tails, axis=1)


def capture_rows(
    path: Path,
    teacher: Callable[[], torch.nn.Module],
    rows: list[Row],
    *,
    k: int,
    tokenizer: Any = None,
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0),
    shift: int = 0,
) -> Path:
    """Write the top-k store of `teacher` over `rows`; `shift` misplaces its records on purpose."""
    model = teacher().eval()
    tokenizer = tokenizer or model.tokenizer
    temperatures = list(temperatures)
    manifest = new_manifest(
        vocab_size=len(tokenizer),
        payloads=[{"kind": "topk", "k": k}],
        temperatures=temperatures,
        sequence_len=max((len(row["input_ids"]) for row in rows), default=0),
        tokenizer=describe_tokenizer(tokenizer, len(tokenizer), _ids_of(rows)),
        teacher={"name": "test"},
        source=about_rows(rows),
    )
    with StoreWriter.create_or_resume(path, manifest) as writer:
        for index, row in enumerate(rows):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            logits = logits.roll(shift, 0)[:, : len(tokenizer)]
            supervised = torch.tensor(row["labels"][1:]) != -100
            entries, tail = topk_records(logits[:-1][supervised], k, temperatures)
            writer.append(
                source_row=index,
                row_id=f"row-{index}",
                input_ids=row["input_ids"],
                labels=row["labels"],
                text="",
                records=RecordBatch(
                    {"entries": entries, "tail": tail}, np.full(int(supervised.sum()), k)
                ),
            )
    return path


def store_features(tokenizer: Any, store: Path, packed: bool = False) -> list[Row]:
    """What Axolotl would hand the collator for the rows of a store."""
    import pyarrow.parquet as pq

    strategy = StoreStrategy(tokenizer, str(store), max_len=None, overlong="drop")
    table = pq.read_table(store / "data")
    columns = strategy.tokenize_prompt(table.to_pydict())
    features = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    if packed:
        for feature in features:
            feature["position_ids"] = list(range(len(feature["input_ids"])))
    return features
