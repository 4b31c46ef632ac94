"""The shift of signal/batch.py, and what the collator makes of it."""

import numpy as np
import pytest
from axolotl.utils.collators import DataCollatorForSeq2Seq
from hypothesis import given
from hypothesis import strategies as st
from support import synthetic
from support.stores import store_features

from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.signal.batch import (
    IGNORE,
    WEIGHTS,
    of_next,
    pointers,
    supervised_counts,
    supervised_positions,
    targets,
)
from axolotl_distill.store import open_store

documents = st.lists(st.lists(st.one_of(st.just(IGNORE), st.integers(0, 99)), max_size=6))


def by_hand(document):
    return [*document[1:], IGNORE] if document else []


@given(documents)
def test_every_position_gets_the_next_token_of_its_own_document(made):
    lengths = np.array([len(document) for document in made], dtype=np.int64)
    flat = np.array([label for document in made for label in document], dtype=np.int64)
    expected = [token for document in made for token in by_hand(document)]
    assert targets(flat, np.cumsum(lengths) - lengths).tolist() == expected
    counts = [sum(token != IGNORE for token in by_hand(document)) for document in made]
    assert supervised_counts(flat, lengths).tolist() == counts
    for document, count in zip(made, counts, strict=True):
        positions = supervised_positions(document)
        assert [document[at + 1] for at in positions] == [
            token for token in by_hand(document) if token != IGNORE
        ]
        assert positions.size == count


def test_weights_move_with_their_tokens():
    assert of_next(np.array([9, 2, 3, 9, 5]), WEIGHTS, [0, 3]).tolist() == [2, 3, 0, 5, 0]


def test_pointers_lead_to_records_in_order():
    labels = [7, IGNORE, 8, 9, IGNORE, 3]
    assert pointers(labels, 50).tolist() == [-1, 50, 51, -1, 52, -1]


@pytest.mark.parametrize("side", ["right", "left"])
def test_documents_that_a_streaming_packer_joined(tokenizer, side):
    """Their first tokens are nobody's target, though each row has one label too many there."""
    tokenizer.padding_side = side
    collate = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[],
        temperature=1.0,
        weighted=True,
    )
    row = {
        "input_ids": [5, 6, 7, 8, 9, 10],
        "labels": [5, 6, 7, 8, IGNORE, 10],
        "loss_weight": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "position_ids": [0, 1, 2, 0, 1, 2],
        "attention_mask": [1] * 6,
    }
    batch = collate([row])
    assert batch["shift_labels"].tolist() == [[6, 7, IGNORE, IGNORE, 10, IGNORE]]
    assert batch["target_weight"].tolist() == [[2, 3, 0, 0, 6, 0]]
    assert batch["labels"].tolist() == [row["labels"]]


def collator(tokenizer, *stores):
    return TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[open_store(path) for path in stores],
        temperature=1.0,
    )


def test_entries_are_as_wide_as_the_longest_record_of_the_batch(tokenizer, tmp_path):
    """Not as the store's longest; and every batch has the same columns."""
    path = synthetic.write_store(tmp_path / "store", rows=20)
    made = [one for index in range(20) if (one := synthetic.row(index, "nucleus"))]
    rows = sorted((int(one["records"].lengths.max()), at) for at, one in enumerate(made))
    features = store_features(tokenizer, path)
    (least, few), (most, many) = rows[0], rows[-1]
    assert least < most <= 9
    collate = collator(tokenizer, path)
    for chosen, longest in (([few], least), ([many], most), ([few, many], most)):
        batch = collate([dict(features[at]) for at in chosen])
        assert batch["teacher_entries"].shape == (*batch["input_ids"].shape, longest)
        assert ((batch["teacher_entries"] != -1).any(-1) == (batch["shift_labels"] != IGNORE)).all()
    text = {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "attention_mask": [1] * 3}
    alone = collate([text])
    assert alone["teacher_entries"].tolist() == [[[-1]] * 3]
    assert [(n, c.dtype) for n, c in alone.items()] == [(n, c.dtype) for n, c in batch.items()]
