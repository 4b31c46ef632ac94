"""A top-k store whose records may have fewer than k entries."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.synthetic import VOCAB, about_rows, edit_manifest, fill, manifest, row

from axolotl_distill.errors import StoreCorruptError
from axolotl_distill.store import RecordBatch, StoreWriter, open_store, verify_store
from axolotl_distill.store.encoding import decode_counts, decode_logprobs, encode_counts, parts
from axolotl_distill.store.payloads.entries import starts_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "store-format.md"


def ragged(path, k=9):
    """Two shards: the first with records of 1 to 9 entries, the second with 6 each."""
    made = [row(index, "nucleus" if index < 8 else "topk") for index in range(15)]
    header = manifest("topk", payloads=[{"kind": "topk", "k": k}], source=about_rows(made))
    with StoreWriter.create_or_resume(path, header) as writer:
        fill(writer, "nucleus", 8, 10_000)
        writer.commit()
        fill(writer, "topk", 15, 10_000)
    return path


def test_short_records_are_read_as_written(tmp_path):
    store = verify_store(ragged(tmp_path / "store"))
    start = 0
    for index in range(15):
        made = row(index, "nucleus" if index < 8 else "topk")
        if made is None:
            continue
        records = made["records"]
        found = store.read(np.arange(start, start + len(records)))
        start += len(records)
        lengths = (found.entries != 0xFFFFFFFF).sum(1)
        assert lengths.tolist() == records.lengths.tolist()
        assert found.entries[found.entries != 0xFFFFFFFF].tolist() == records.entries.tolist()
    assert start == store.num_records


def test_whole_records_need_no_lengths(tmp_path):
    store = open_store(ragged(tmp_path / "store", k=9))
    assert ["lengths" in store.arrays(shard) for shard in (0, 1)] == [True, True]
    header = manifest("topk", rows=8)
    with StoreWriter.create_or_resume(tmp_path / "whole", header) as writer:
        fill(writer, "topk", 8, 10_000)
    assert "lengths" not in open_store(tmp_path / "whole").arrays(0)


def test_a_record_of_more_than_k_is_not_taken(tmp_path):
    path = ragged(tmp_path / "store")
    edit_manifest(path, lambda values: values["payloads"][0].update(k=8))
    with pytest.raises(StoreCorruptError, match="more than 8 entries"):
        verify_store(path)


def test_read_without_this_package(tmp_path):
    """The code of the format's page reads short records too."""
    path = ragged(tmp_path / "store")
    code = DOC.read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    records = row(0, "nucleus")["records"]
    ids, logprobs = decode_logprobs(records.entries[: records.lengths[0]], VOCAB)
    assert seen["ids"] == ids.tolist()
    assert seen["logprobs"] == pytest.approx(logprobs.tolist(), abs=1e-5)


@pytest.mark.parametrize("draws, width", [(12, 3), (3000, 4)])
def test_draws_are_read_without_this_package(tmp_path, draws, width):
    """A count of 3,000 does not fit beside 13 bits of an id in 24."""
    payload = {"kind": "sampled", "draws": draws, "temperature": 1.0, "seed": 0}
    made = row(0, "sampled")
    header = manifest("sampled", rows=1, payloads=[payload])
    records = made["records"]
    share = parts(VOCAB, draws) // parts(VOCAB, 12)
    ids, counts = decode_counts(records.entries, VOCAB)
    if draws != 12:
        counts = counts * share
        counts[starts_of(records.lengths)] += parts(VOCAB, draws) - share * parts(VOCAB, 12)
    made["records"] = RecordBatch(
        {**records.columns, "entries": encode_counts(ids, counts, VOCAB)}, records.lengths
    )
    with StoreWriter.create_or_resume(tmp_path, header) as writer:
        writer.append(**made)
    store = verify_store(tmp_path)
    assert store.arrays(0)["entries"].itemsize * store.arrays(0)["entries"][0].size == width
    code = DOC.read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    seen, first = json.loads(done.stdout), slice(records.lengths[0])
    assert seen["ids"] == ids[first].tolist()
    assert seen["shares"] == pytest.approx((counts[first] / parts(VOCAB, draws)).tolist())


def test_a_store_that_was_begun_and_given_up_binds_nobody(tmp_path):
    """A wrong teacher is mended in the YAML; the folder need not be deleted for that."""
    path = tmp_path / "store"
    StoreWriter.create_or_resume(path, manifest("topk")).abandon()
    mended = manifest("topk", rows=3, teacher={"name": "another"})
    with StoreWriter.create_or_resume(path, mended) as writer:
        fill(writer, "topk", 3, 10_000)
    assert open_store(path).manifest.teacher == {"name": "another"}
