"""What a payload says of its records, before a store is there and of one that is."""

import numpy as np
import pytest
from support import synthetic

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store import open_store
from axolotl_distill.store.encoding import PAD
from axolotl_distill.store.payloads import KINDS, Payloads, Records, distribution_of

ASKED = {
    "topk": {"k": 5},
    "nucleus": {"p": 0.5, "max_k": 7},
    "sampled": {"draws": 3, "sampling_temperature": 2, "seed": 9},
}
MADE = {
    "topk": {"k": 5},
    "nucleus": {"p": 0.5, "max_k": 7},
    "sampled": {"draws": 3, "temperature": 2.0, "seed": 9},
}


def asked(kind):
    return distribution_of(CaptureArgs(teacher="t", output="o", method=kind, **ASKED[kind]))


def test_every_kind_is_looked_at():
    """Hidden states are no distribution; test_hidden_store.py looks at them."""
    assert {*KINDS} == {*ASKED, "hidden"}


@pytest.mark.parametrize("kind", ASKED)
def test_what_a_config_asks_for_is_what_a_manifest_says(kind):
    payload = asked(kind)
    assert payload.model_dump() == {"kind": kind, **MADE[kind]}
    assert synthetic.manifest(kind, payloads=[payload]).payloads.each == [payload]


def test_which_temperatures_a_loss_can_have():
    stored = [1.0, 4.0]
    for kind in ("topk", "nucleus"):
        assert asked(kind).serves("tail_bucket", stored) == stored
        assert asked(kind).serves("renormalize", stored) is None
    assert asked("sampled").serves("sampled", stored) == [2.0]


@pytest.mark.parametrize("kind", ASKED)
def test_the_bytes_of_a_record_are_bounded(tmp_path, kind):
    manifest = open_store(synthetic.write_store(tmp_path, kind)).manifest
    headers = 400 * len(manifest.shards)
    entry, beside = {"topk": (4, 4), "nucleus": (4, 5), "sampled": (3, 3)}[kind]
    starts = manifest.num_records // 64 + len(manifest.shards)
    most = (entry * manifest.payloads.most_entries + beside) * manifest.num_records + 4 * starts
    assert 0.4 * most < manifest.bytes_of_records <= most + headers
    if kind == "topk":
        exact = (4 * 6 + 4) * manifest.num_records
        assert manifest.bytes_of_records >= exact, "every record has k entries, and no length"


def test_parts_of_several_shards_become_one():
    parts = [
        (np.array([2, 0]), Records({"entries": np.array([[1, 2], [3, 4]], np.uint32)})),
        (np.array([1]), Records({"entries": np.array([[5, 6, 7]], np.uint32)})),
    ]
    found = Payloads([asked("topk")]).join(parts, 3).entries
    assert found.dtype == np.uint32
    assert found.tolist() == [[3, 4, int(PAD)], [5, 6, 7], [1, 2, int(PAD)]]


@pytest.mark.parametrize("kind", ASKED)
def test_people_see_ids_and_weights(tmp_path, kind):
    store = open_store(synthetic.write_store(tmp_path, kind))
    found = store.read(np.arange(50))
    ids, weights = store.manifest.payloads.distribution.decode(found, synthetic.VOCAB)
    assert (weights[ids < 0] == 0).all() and (weights[ids >= 0] > 0).all()
    total = weights.sum(1)
    assert total == pytest.approx(1) if kind == "sampled" else (total < 1.001).all()
