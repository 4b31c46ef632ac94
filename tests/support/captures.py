"""A whole capture of a model that is small enough to run hundreds of times."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from support.synthetic import about_rows
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_distill.capture import Capture, CaptureReport
from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.capture.teacher import opened
from axolotl_distill.cli.frame import ends_well
from axolotl_distill.commands.kept import keeps_what_is_written
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store import new_manifest, open_store, pointer_record, verify_store
from axolotl_distill.store.folder import JOURNAL
from axolotl_distill.store.payloads import distribution_of

VOCAB = 1000


def small_model(folder: Path) -> Path:
    """Always the same, with logits that are far from uniform."""
    torch.manual_seed(0)
    config = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**config, **heads))
    with torch.no_grad():
        model.lm_head.weight.mul_(40.0)
    model.save_pretrained(folder)
    return folder


def small_rows(count: int = 300) -> list[dict[str, Any]]:
    """Of all lengths up to 46 tokens; every thirteenth has nothing to store."""
    rows = []
    for number in range(count):
        ids = np.random.default_rng(number).integers(0, VOCAB, 6 + (37 * number) % 41).tolist()
        labels = [-100] * len(ids) if number % 13 == 3 else [-100, -100, *ids[2:]]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


class Captures:
    """Of random text, by a real model loaded anew, to several shards: what the command does once
    Axolotl has read the text, which takes longer than everything here."""

    name = "capture"

    def __init__(self, model: Path, rows, **capture):
        self.rows = rows
        teacher = {"model": str(model), "device": "cpu", "dtype": "float32"}
        self.args = CaptureArgs(teacher=teacher, output="-", batch_tokens=400, **capture)

    def begin(self, folder):
        folder.mkdir()

    def run(self, folder):
        with ends_well("kept"), keeps_what_is_written(str(folder / "store")):
            self.captured(folder)

    def captured(self, folder, opener=opened) -> CaptureReport:
        """By whoever has the teacher."""
        payload = distribution_of(self.args)
        manifest = new_manifest(
            vocab_size=VOCAB,
            payloads=[payload],
            temperatures=self.args.temperatures if "tail" in payload.columns else [],
            sequence_len=60,
            tokenizer={"fingerprint": "f" * 64, "name": "none"},
            teacher={"name": "small"},
            source=about_rows(self.rows),
        )
        path = folder / "store"
        with Capture(path, manifest, self.rows, str, shard_records=900) as capture:
            if not capture.was_complete:
                with opener(self.args, VOCAB) as source:
                    capture(source)
        return capture.report

    def kept(self, folder):
        """Every row with its records, out of the shards that are there; and of those that are in no
        shard yet how many there are."""
        path = folder / "store"
        count = {("row", number): True for number in range(stored_rows(path))}
        if not (path / "manifest.json").exists():
            return count
        return {**count, **rows_of(open_store(path, allow_incomplete=True, check_again=True))}

    def result(self, folder):
        path = folder / "store"
        assert not (path / JOURNAL).exists()
        store = verify_store(path)
        assert store.manifest.complete
        records = [digest(path / shard.records_file) for shard in store.manifest.shards]
        return rows_of(store), records


def rows_of(store):
    """By its number in the source: tokens, labels, text, where its records are, and a hash of
    them."""
    found = {}
    for file in store.parquet_files:
        for row in pq.read_table(file).to_pylist():
            start = int(pointer_record(np.int64(row.pop("teacher_start"))))
            records = store.read(np.arange(start, start + row["num_records"]))
            columns = {
                name: array.tolist()
                for name, array in vars(records).items()
                if isinstance(array, np.ndarray)
            }
            text = json.dumps([row, start, columns], sort_keys=True)
            found[row["id"]] = hashlib.sha256(text.encode()).hexdigest()
    return found


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
