"""The teacher's way from disk to a batch: ours against Axolotl's own KD plugin, side by side.

    python benchmarks/data_path.py

The same 8,192 tokens with 64 entries each, in rows of 512: collating a batch, and the bytes a
token that these logits take in a teacher store, in the Arrow cache and in JSONL as that plugin
has them. Then the same batch out of a store at s3://, on a server on this machine: with its shards
in the cache, and with an empty one, where each is fetched first.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from axolotl.integrations.kd.collator import DataCollatorForKD
from axolotl.utils.collators import DataCollatorForSeq2Seq
from common import alternate, keep
from datasets import Dataset
from transformers import AutoTokenizer

from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.datasets.store import StoreStrategy
from axolotl_distill.store import (
    CachePlace,
    RecordBatch,
    RemoteStore,
    StoreWriter,
    TeacherStore,
    encoding,
    new_manifest,
    open_store,
)
from axolotl_distill.store.transfer import push

ROOT = Path(__file__).resolve().parent.parent
ROWS, LENGTH, K, VOCAB = 16, 512, 64, 49_152
ROWS_A_SHARD = 4
sys.path.insert(0, str(ROOT / "tests"))

from support.s3_server import s3_server  # noqa: E402  (the tests' own server)


def folder_bytes(path: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in path.rglob(pattern) if file.is_file())


def random_logprobs(rng: np.random.Generator, records: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.stack([rng.choice(VOCAB, K, replace=False) for _ in range(records)])
    values = -np.sort(rng.exponential(5.0, (records, K)), axis=1)
    # Of a distribution, as a store demands: the entries hold 95 % of it.
    return ids, values + np.log(0.95 / np.exp(values).sum(1, keepdims=True))


def write_store(path: Path, rows: list[dict]) -> None:
    manifest = new_manifest(
        vocab_size=VOCAB,
        payloads=[{"kind": "topk", "k": K}],
        temperatures=[1.0, 2.0, 4.0],
        sequence_len=LENGTH,
        tokenizer={"fingerprint": "-", "name": "-"},
        teacher={"name": "-"},
        source={"fingerprint": "-", "num_rows": ROWS, "supervised": ROWS * (LENGTH - 1)},
    )
    with StoreWriter.create_or_resume(path, manifest) as writer:
        for index, row in enumerate(rows):
            records = LENGTH - 1
            entries = encoding.encode_logprobs(row["ids"], row["logprobs"], VOCAB)
            held = np.exp(row["logprobs"].astype(np.float64)).sum(-1)
            tail = encoding.encode_tail(np.log1p(-held), np.log(held))
            writer.append(
                source_row=index,
                row_id=str(index),
                input_ids=row["input_ids"],
                labels=row["labels"],
                text="",
                records=RecordBatch(
                    {"entries": entries.reshape(-1), "tail": np.repeat(tail[:, None], 3, 1)},
                    np.full(records, K),
                ),
            )
            if (index + 1) % ROWS_A_SHARD == 0:
                writer.commit()


def collator(tokenizer: object, store: TeacherStore) -> TeacherCollator:
    return TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[store],
        temperature=2.0,
        return_tensors="pt",
    )


def emptied(store: RemoteStore) -> None:
    for file in (store.cache.folder / "objects").iterdir():
        file.unlink()


def main() -> None:
    rng = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / ".cache/smollm2")
    rows = []
    for _ in range(ROWS):
        ids, logprobs = random_logprobs(rng, LENGTH - 1)
        tokens = rng.integers(0, VOCAB, LENGTH).tolist()
        rows.append({"input_ids": tokens, "labels": tokens, "ids": ids, "logprobs": logprobs})

    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        write_store(store, rows)
        strategy = StoreStrategy(tokenizer, str(store), None, "drop")
        columns = strategy.tokenize_prompt(
            {
                "id": [str(i) for i in range(ROWS)],
                "input_ids": [row["input_ids"] for row in rows],
                "labels": [row["labels"] for row in rows],
                "teacher_start": [
                    open_store(store).manifest.pointer_base + i * (LENGTH - 1) for i in range(ROWS)
                ],
                "num_records": [LENGTH - 1] * ROWS,
            }
        )
        ours = Dataset.from_dict(columns)
        # One extra row keeps every column as long as the tokens, as that plugin's strategy does.
        theirs = Dataset.from_dict(
            {
                "input_ids": columns["input_ids"],
                "labels": columns["labels"],
                "attention_mask": columns["attention_mask"],
                "target_token_ids": [[[0] * K, *row["ids"].tolist()] for row in rows],
                "target_logprobs": [[[-20.0] * K, *row["logprobs"].tolist()] for row in rows],
                "target_mask": [[[0] * K] + [[1] * K] * (LENGTH - 1) for _ in rows],
            }
        )
        ours.save_to_disk(Path(scratch) / "ours")
        theirs.save_to_disk(Path(scratch) / "theirs")
        theirs.to_json(Path(scratch) / "theirs.jsonl")
        tokens = ROWS * LENGTH
        sizes = {
            "store_records": folder_bytes(store / "teacher", "*") / tokens,
            "store_with_rows": folder_bytes(store, "*") / tokens,
            "axolotl_kd_arrow": folder_bytes(Path(scratch) / "theirs", "*.arrow") / tokens,
            "axolotl_kd_jsonl": (Path(scratch) / "theirs.jsonl").stat().st_size / tokens,
        }
        our_collator = collator(tokenizer, open_store(store))
        their_collator = DataCollatorForKD(tokenizer, return_tensors="pt")
        indices = list(range(ROWS))
        fetch_ours = [ours[i] for i in indices]
        fetch_theirs = [theirs[i] for i in indices]
        with s3_server() as server:
            url = f"{server.make_bucket('stores')}/teacher"
            push(open_store(store), url)
            cached, remote = (
                open_store(url, cache=CachePlace(Path(scratch) / name, 10**9))
                for name in ("cached", "remote")
            )
            cached_collator, remote_collator = (
                collator(tokenizer, far) for far in (cached, remote)
            )

            def fetched() -> None:
                emptied(remote)
                remote_collator([dict(row) for row in fetch_ours])

            seconds = alternate(
                {
                    "ours_collate": lambda: our_collator([dict(row) for row in fetch_ours]),
                    "ours_collate_cached": lambda: cached_collator(
                        [dict(row) for row in fetch_ours]
                    ),
                    "ours_collate_remote": fetched,
                    "axolotl_kd_collate": lambda: their_collator(
                        [dict(row) for row in fetch_theirs]
                    ),
                    "ours_fetch_and_collate": lambda: our_collator([ours[i] for i in indices]),
                    "axolotl_kd_fetch_and_collate": lambda: their_collator(
                        [theirs[i] for i in indices]
                    ),
                }
            )
            shards = len(remote.manifest.shards)
            remote_bytes = remote.manifest.bytes_of_records
    results = {
        "tokens": tokens,
        "entries_per_token": K,
        "bytes_per_token": sizes,
        "tokens_per_second": {name: tokens / taken for name, taken in seconds.items()},
        "shards": shards,
        "remote_megabytes_per_second": remote_bytes / seconds["ours_collate_remote"] / 1e6,
        "speedup_collate": seconds["axolotl_kd_collate"] / seconds["ours_collate"],
        "speedup_fetch_and_collate": seconds["axolotl_kd_fetch_and_collate"]
        / seconds["ours_fetch_and_collate"],
    }
    print(json.dumps(results, indent=1))
    keep("data_path", results)


if __name__ == "__main__":
    main()
