"""A teacher that is the student itself: its KL is zero at every token, or the wiring is wrong."""

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from distill_kernels import DistillSpec
from support.losses import Loss, attach
from support.stores import capture_rows, random_rows, store_features

from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.datasets.store import StoreStrategy
from axolotl_distill.store import open_store

pytestmark = pytest.mark.axolotl

TEMPERATURES = [1.0, 2.0, 4.0]


@pytest.fixture(scope="module")
def rows(tiny_model):
    return random_rows(tiny_model().tokenizer, lengths=[37, 64, 5, 23, 50, 2])


@pytest.fixture(scope="module")
def self_store(tmp_path_factory, tiny_model, rows):
    return capture_rows(tmp_path_factory.mktemp("self") / "store", tiny_model, rows, k=32)


@pytest.fixture(scope="module")
def shifted_store(tmp_path_factory, tiny_model, rows):
    path = tmp_path_factory.mktemp("shifted") / "store"
    return capture_rows(path, tiny_model, rows, k=32, shift=1)


def student(tiny_model, store, temperature):
    model = tiny_model()
    spec = DistillSpec(temperature=temperature, alpha=1.0, reduction="sum")
    attach(model, Loss(spec, open_store(store).manifest.vocab_size))
    return model


def collator(tokenizer, store, temperature, packed):
    base = V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq
    return TeacherCollator(
        tokenizer,
        base_cls=base,
        packed=packed,
        stores=[open_store(store)],
        temperature=temperature,
        padding=True,
        pad_to_multiple_of=64,
        return_tensors="pt",
    )


def isolated(batch, packed):
    """Axolotl patches attention to keep packed documents apart; outside of it, transformers does
    so by itself from position_ids when there is no mask."""
    return {k: v for k, v in batch.items() if not (packed and k == "attention_mask")}


def kl(model, batch):
    with torch.no_grad():
        value, count = model(**batch).metrics["kl"]
    return (value / count).item(), int(count)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("layout", ["right", "left", "packed", "truncated"])
def test_own_store_gives_zero(
    tokenizer, tiny_model, self_store, shifted_store, layout, temperature
):
    tokenizer.padding_side = "left" if layout == "left" else "right"
    packed = layout == "packed"
    found = {}
    for name, store in (("own", self_store), ("shifted", shifted_store)):
        features = store_features(tokenizer, store, packed=packed)
        if layout == "truncated":
            for feature in features:
                # Axolotl's truncation knows these columns and not the pointers.
                for column in ("input_ids", "labels", "attention_mask"):
                    feature[column] = feature[column][:20]
        batch = collator(tokenizer, store, temperature, packed)([features] if packed else features)
        model = student(tiny_model, store, temperature)
        found[name] = kl(model, isolated(batch, packed))
    expected = sum(
        sum(label != -100 for label in feature["labels"][1 : 20 if layout == "truncated" else None])
        for feature in store_features(tokenizer, self_store)
    )
    assert found["own"][1] == expected
    assert abs(found["own"][0]) < 2e-5
    assert found["shifted"][0] > 1e-2


def test_every_token_alone(tokenizer, tiny_model, self_store):
    """Not only the mean: the record of each single position fits the student's own logits."""
    features = store_features(tokenizer, self_store)
    batch = collator(tokenizer, self_store, 1.0, packed=False)(features)
    model = student(tiny_model, self_store, 1.0)
    entries = batch["teacher_entries"]
    for b, s in np.argwhere((entries[..., 0] != -1).numpy())[::7]:
        alone = torch.full_like(entries, -1)
        alone[b, s] = entries[b, s]
        value, count = kl(model, {**batch, "teacher_entries": alone})
        assert count == 1
        assert abs(value) < 1e-4, (b, s)


def test_packed_and_padded_train_alike(tokenizer, tiny_model, self_store):
    """Packing changes neither the loss nor a single gradient."""
    gradients, losses = [], []
    for packed in (False, True):
        features = store_features(tokenizer, self_store, packed=packed)
        batch = collator(tokenizer, self_store, 2.0, packed)([features] if packed else features)
        model = student(tiny_model, self_store, 2.0)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
        loss = model(**isolated(batch, packed)).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 1e-3
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=2e-3, atol=1e-6, msg=name)


def test_a_stale_cache_is_refused(tokenizer, self_store, shifted_store):
    features = store_features(tokenizer, shifted_store)
    with pytest.raises(ValueError, match="stale"):
        collator(tokenizer, self_store, 1.0, packed=False)(features)


def test_rows_and_records_must_agree(tokenizer, self_store):
    strategy = StoreStrategy(tokenizer, str(self_store), None, "drop")
    row = {
        "id": ["r"],
        "input_ids": [[5, 6, 7]],
        "labels": [[-100, 6, 7]],
        "teacher_start": [0],
        "num_records": [1],
    }
    with pytest.raises(ValueError, match="2 supervised tokens but the store knows 1"):
        strategy.tokenize_prompt(row)
