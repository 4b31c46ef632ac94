"""A second payload beside a store's distribution: one class, and nobody else knows of it."""

from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq
from pydantic import Field
from support import synthetic
from support.stores import store_features

from axolotl_distill.capture.journal import RecordJournal
from axolotl_distill.commands.inspect import statistics
from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.signal.batch import Column
from axolotl_distill.store import RecordBatch, StoreWriter, open_store, verify_store
from axolotl_distill.store.payloads import KINDS, Payload, Records, registered

VECTOR = Column("teacher_vector", np.float16, 0.0)
WIDTH = 5


class Vector(Payload):
    """One vector a record, fp16 [R, width]."""

    kind: Literal["vector"]
    width: Annotated[int, Field(ge=1, le=1 << 16)]

    columns: ClassVar[tuple[str, ...]] = ("vector",)

    def tensors(self, shape, present):
        return {"vector": ("F16", (shape.records, self.width))}

    def pack(self, records, shape):
        return dict(records.columns)

    def check_batch(self, records, shape):
        assert records.columns["vector"].shape == (len(records), self.width)

    def read(self, arrays, index, shape):
        return Records({"vector": arrays["vector"][index]})

    def check(self, arrays, shape, most=None):
        if not np.isfinite(arrays["vector"]).all():
            raise ValueError("a vector is not finite")

    def collate(self, records, temperatures, temperature):
        return {VECTOR: records.columns["vector"]}

    def summary(self, records, temperatures):
        return {"vector": {"mean": float(records.columns["vector"].mean())}}


@pytest.fixture(autouse=True)
def vector():
    registered(Vector)
    yield
    del KINDS["vector"]


def row(index):
    made = synthetic.row(index, "nucleus")
    if made is None:
        return None
    rng = np.random.default_rng(index)
    states = rng.standard_normal((len(made["records"]), WIDTH)).astype(np.float16)
    columns = {**made["records"].columns, "vector": states}
    return {**made, "records": RecordBatch(columns, made["records"].lengths)}


def manifest(rows=40):
    payloads = [
        {"kind": "nucleus", "p": 0.9, "max_k": 9},
        {"kind": "vector", "width": WIDTH},
    ]
    return synthetic.manifest(rows=rows, payloads=payloads)


def append(writer, stop, every=150):
    for index in range(writer.next_source_row, stop):
        made = row(index)
        if made is None:
            writer.skip(index)
            continue
        writer.append(**made)
        if writer.open_records >= every:
            writer.commit()


@pytest.fixture
def path(tmp_path):
    """Written by two writers, of which the first was stopped."""
    first = StoreWriter.create_or_resume(tmp_path / "store", manifest())
    append(first, 25)
    first.abandon()
    with StoreWriter.create_or_resume(tmp_path / "store", manifest()) as second:
        assert 0 < second.next_source_row < 25
        append(second, 40)
    return tmp_path / "store"


def states(rows=40):
    made = [row(index) for index in range(rows)]
    return np.concatenate([one["records"].columns["vector"] for one in made if one])


def test_it_is_written_and_read_beside_the_distribution(path):
    store = verify_store(path)
    assert len(store.manifest.shards) > 2
    index = np.random.default_rng(0).permutation(store.num_records)
    found = store.read(index)
    assert (found.columns["vector"] == states()[index]).all()
    plain = synthetic.write_store(path.parent / "plain")
    assert (found.entries == open_store(plain).read(index).entries).all()
    taken = 2 * WIDTH * store.num_records
    extra = store.manifest.bytes_of_records - open_store(plain).manifest.bytes_of_records
    assert taken <= extra <= taken + 400 * len(store.manifest.shards)


def test_people_are_told_of_both(path):
    numbers = statistics(open_store(path))
    assert numbers["a record holds"] == ["nucleus {'p': 0.9, 'max_k': 9}", "vector {'width': 5}"]
    assert numbers["vector"]["mean"] == pytest.approx(float(states().mean()), abs=1e-3)
    assert "mass held at T" in numbers
    card = (path / "README.md").read_text()
    assert "nucleus" in card and "vector, width 5" in card


def test_a_capture_that_stops_keeps_both(path):
    records = row(0)["records"]
    with RecordJournal(path, "u" * 32) as journal:
        journal.append(0, records)
    with RecordJournal(path, "u" * 32) as journal:
        (found,) = journal.read(0).values()
    assert found.columns.keys() == records.columns.keys()
    assert (found.columns["vector"] == records.columns["vector"]).all()


def test_damage_to_it_is_seen(path):
    name = "teacher/shard-00001.safetensors"
    data = bytearray((path / name).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    place = data.index(open_store(path).arrays(1)["vector"][7].tobytes(), start)
    data[place : place + 2] = np.float16(np.nan).tobytes()
    (path / name).write_bytes(data)
    with pytest.raises(StoreCorruptError, match="sha256"):
        verify_store(path)
    synthetic.rehash(path, name)
    with pytest.raises(StoreCorruptError, match=r"shard-00001.*a vector is not finite"):
        verify_store(path)


def test_a_batch_has_both_at_the_position_that_predicts(path, tokenizer):
    collate = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[open_store(path)],
        temperature=2.0,
    )
    batch = collate(store_features(tokenizer, path)[:3])
    learnt = batch["shift_labels"] != -100
    wanted = states()[: int(learnt.sum())]
    assert batch["teacher_vector"].shape == (*learnt.shape, WIDTH)
    assert (batch["teacher_vector"][learnt] == torch.from_numpy(wanted)).all()
    assert (batch["teacher_vector"][~learnt] == 0).all()
    assert (batch["teacher_entries"][learnt][:, 0] != -1).all()
    assert batch["teacher_tail"].shape == learnt.shape


def test_beside_a_store_without_it_a_batch_has_what_both_have(path, tokenizer):
    plain = synthetic.write_store(path.parent / "plain")
    collate = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[open_store(path), open_store(plain)],
        temperature=2.0,
    )
    for features in (store_features(tokenizer, path), store_features(tokenizer, plain)):
        batch = collate(features[:2])
        assert "teacher_vector" not in batch
        assert (batch["teacher_entries"] != -1).any()


def test_a_capture_goes_on_only_with_the_same(path):
    said = r"`payloads`: payloads is \['nucleus', 'vector'\] there and \['nucleus'\] now"
    with pytest.raises(StoreError, match=said):
        StoreWriter.create_or_resume(path, synthetic.manifest())


@pytest.mark.parametrize(
    "payloads, said",
    [
        ([{"kind": "topk", "k": 3}, {"kind": "nucleus", "p": 0.5, "max_k": 3}], "`entries`"),
        ([{"kind": "vector", "width": 3}], "how likely the next token is"),
        ([{"kind": "topk", "k": 3}, {"kind": "vector", "width": 0}], "payloads.1.width"),
    ],
)
def test_what_cannot_be_together(payloads, said):
    with pytest.raises(StoreError, match=said):
        synthetic.manifest(payloads=payloads)


def test_what_is_stored_must_be_all_of_it(tmp_path):
    with StoreWriter.create_or_resume(tmp_path, manifest()) as writer:
        with pytest.raises(AssertionError, match="the payloads' columns"):
            writer.append(**synthetic.row(0, "nucleus"))
        append(writer, 40)
