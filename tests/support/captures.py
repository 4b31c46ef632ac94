"""A whole capture of a model that is small enough to run hundreds of times."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from support.synthetic import about_rows, manifest
from support.synthetic import row as made_row
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_distill.capture import Capture, CaptureReport
from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.capture.teacher import opened
from axolotl_distill.cli.frame import ends_well
from axolotl_distill.commands.kept import keeps_what_is_written
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.disk.remote import RemoteFolder
from axolotl_distill.errors import StoreMissingError
from axolotl_distill.store import (
    CachePlace,
    TeacherStore,
    new_manifest,
    open_store,
    pointer_record,
    verify_store,
)
from axolotl_distill.store.folder import FOLDERS, JOURNAL
from axolotl_distill.store.manifest import FILE
from axolotl_distill.store.outlet import Outlet
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

    def output(self, folder: Path) -> str:
        return str(folder / "store")

    def outlet(self, folder: Path) -> Outlet | None:
        return None

    def run(self, folder):
        outlet = self.outlet(folder)
        with ends_well("kept"), keeps_what_is_written(self.output(folder), outlet):
            self.captured(folder, outlet=outlet)

    shard_records = 900

    def header(self):
        payload = distribution_of(self.args)
        return new_manifest(
            vocab_size=VOCAB,
            payloads=[payload],
            temperatures=self.args.temperatures if "tail" in payload.columns else [],
            sequence_len=60,
            tokenizer={"fingerprint": "f" * 64, "name": "none"},
            teacher={"name": "small"},
            source=about_rows(self.rows),
        )

    def opened(self):
        return opened(self.args, VOCAB)

    def captured(self, folder, opener=None, outlet=None) -> CaptureReport:
        """By whoever has the teacher."""
        with Capture(
            self.output(folder),
            self.header(),
            self.rows,
            str,
            shard_records=self.shard_records,
            outlet=outlet or self.outlet(folder),
        ) as capture:
            if not capture.was_complete:
                with opener(self.args, VOCAB) if opener else self.opened() as source:
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


class CapturesAway(Captures):
    """The same to an address: a folder's store is BUCKET/NAME, its spool lies in the folder."""

    name = "capture to an address"

    def __init__(self, bucket: str, *args, shards: int = 2, **capture):
        super().__init__(*args, **capture)
        self.bucket, self.shards = bucket, shards

    def output(self, folder):
        return f"{self.bucket}/{folder.name}"

    def outlet(self, folder):
        return Outlet(self.output(folder), folder / "spool", self.shards)

    def kept(self, folder):
        """Every row: those that the address has, those that wait, and how many are in no shard."""
        spool = folder / "spool"
        count = {("row", number): True for number in range(stored_rows(spool))}
        away = there(self.output(folder))
        for shard in away.manifest.shards if away else []:
            assert (spool / FILE).exists() or away.manifest.complete
            count[("sent", shard.name)] = shard.files
        if away and away.manifest.complete:
            count |= {("row", number): True for number in range(len(self.rows))}
        return count

    def result(self, folder):
        assert {file.name for file in (folder / "spool").iterdir()} <= EMPTY
        assert not [file for name in FOLDERS for file in (folder / "spool" / name).iterdir()]
        place = CachePlace(folder / "cache", 10**8)
        files = RemoteFolder(self.output(folder)).listing()
        store = open_store(self.output(folder), cache=place)
        assert store.manifest.complete
        named = {name for shard in store.manifest.shards for name in shard.files}
        assert {*files} == named | {FILE, "README.md"}
        records = [shard.files[shard.records_file]["sha256"] for shard in store.manifest.shards]
        return rows_of(store), records


class MadeUp(Captures):
    """Records that nobody has to think about, for what is about files alone."""

    shard_records = 150
    window_rows, workers, teacher_seconds = 8, 1, 0.0

    def __init__(self, rows: int = 80):
        self.args = None
        self._made = [made_row(number, "topk") for number in range(rows)]
        nothing = {"input_ids": [1, 2], "labels": [-100, -100]}
        self.rows = [
            {name: made[name] for name in nothing} if made else nothing for made in self._made
        ]

    def header(self):
        return manifest("topk", len(self.rows))

    @contextmanager
    def opened(self):
        yield self

    def records(self, rows, wanted):
        for index in sorted(wanted):
            yield index, self._made[index]["records"]


class MadeUpAway(CapturesAway, MadeUp):
    pass


EMPTY = {".lock", *FOLDERS}


def there(url: str) -> TeacherStore | None:
    """The store at an address, complete or not."""
    with TemporaryDirectory() as folder:
        try:
            return open_store(url, allow_incomplete=True, cache=CachePlace(Path(folder), 10**8))
        except StoreMissingError:
            return None


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
