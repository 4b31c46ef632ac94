"""Weights of tokens: from the rows through the collator to the loss and its gradients."""

import copy
import re

import pytest
import torch
from accelerate import Accelerator
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from distill_kernels import DistillSpec, distill_loss
from support.kernel_cases import relative_error
from support.losses import attach, batch_of, settings
from support.stores import capture_rows, random_rows
from torch.nn import functional as F

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import TrajectoryError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import logits_objective
from axolotl_distill.objectives.metrics import MetricSums
from axolotl_distill.signal.entries import decode_entries

LOSS_WEIGHT, TARGET_WEIGHT = "loss_weight", "target_weight"
ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [5, 6, -100, 8], LOSS_WEIGHT: [0.5, 0.25, 0.5, 1.0]},
    {"input_ids": [9, 10], "labels": [-100, 10], LOSS_WEIGHT: None},
    {"input_ids": [11, 12, 13], "labels": [-100, 12, 13], LOSS_WEIGHT: [1.0, 0.125, 1.0, 0.5]},
]
PADDED = [[0.25, 0, 1, 0], [1, 0, 0, 0], [0.125, 1, 0, 0]]
"""At the position that predicts. No weight for a document's first token, for what is no label and
on padding; 1 in a row without the column; what Axolotl truncated is cut off."""


def features(packed):
    rows = [{**copy.deepcopy(row), "attention_mask": [1] * len(row["input_ids"])} for row in ROWS]
    for row in rows:
        row |= {"position_ids": list(range(len(row["input_ids"])))} if packed else {}
    return rows


def collate(tokenizer, packed, weighted=True):
    base = V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq
    collator = TeacherCollator(
        tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0, weighted=weighted
    )
    return collator([features(packed)] if packed else features(packed))


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_weights(tokenizer, side):
    tokenizer.padding_side = side
    batch = collate(tokenizer, packed=False)
    expected = torch.tensor(PADDED, dtype=torch.float32)
    if side == "left":
        expected = torch.stack([expected[0], expected[1].roll(2), expected[2].roll(1)])
    torch.testing.assert_close(batch[TARGET_WEIGHT], expected)
    assert not any(name.startswith("teacher") for name in batch)


def test_packed_weights(tokenizer):
    batch = collate(tokenizer, packed=True)
    flat = [*PADDED[0], *PADDED[1][:2], *PADDED[2][:3]]
    assert batch[TARGET_WEIGHT].tolist() == [flat]
    assert TARGET_WEIGHT not in collate(tokenizer, packed=True, weighted=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model):
    rows = random_rows(tiny_model().tokenizer, [40, 25, 12], seed=5)
    return capture_rows(
        tmp_path_factory.mktemp("s") / "store", lambda: tiny_model(seed=1), rows, k=8
    )


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_what_is_no_weight_is_refused_with_its_row(tokenizer, wrong):
    rows = features(packed=False)
    rows[2][LOSS_WEIGHT][1] = wrong
    collator = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[],
        temperature=1.0,
        weighted=True,
    )
    begin = re.escape(repr(tokenizer.decode(ROWS[2]["input_ids"])))
    with pytest.raises(TrajectoryError, match=rf"`loss_weight` .*{begin} holds {wrong:g}"):
        collator(rows)


def weighted_batch(store, tokenizer):
    batch = batch_of(store, tokenizer)
    batch.pop("position_ids", None)
    # So small that all of them add up to less than one token.
    weights = 0.01 * torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(3))
    batch[TARGET_WEIGHT] = weights.masked_fill(batch["shift_labels"] == -100, 0.0)
    assert 0 < batch[TARGET_WEIGHT].sum() < 1
    return batch


def by_the_formula(model, batch, alpha):
    """sum w l / sum w in float64, from the model's own logits, and its gradients."""
    model = model.double()
    logits = model(
        batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    logits, targets = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    weights = batch[TARGET_WEIGHT][:, :-1].flatten().double()
    if alpha == 0:
        rows = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    else:
        teacher = decode_entries(
            batch["teacher_entries"][:, :-1].flatten(0, 1),
            vocab_size=logits.shape[1],
            sampled=False,
            temperature=2.0,
            tail=batch["teacher_tail"][:, :-1].flatten(),
        )
        spec = DistillSpec(temperature=2.0, alpha=alpha, reduction="none")
        rows = distill_loss(logits, teacher, targets, spec=spec).loss
    loss = (weights * rows).sum() / weights.sum()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("alpha", [0.7, 0.0])
def test_loss_and_gradients(tiny_model, tokenizer, store, alpha, model_type):
    """With distillation and without, on a head that is fused; gemma2 caps its logits."""
    batch = weighted_batch(store, tokenizer)
    expected, gradients = by_the_formula(tiny_model(model_type), batch, alpha)
    text = {k: v for k, v in batch.items() if alpha or not k.startswith("teacher")}
    model = tiny_model(model_type)
    if alpha:
        attach(model, settings(tokenizer, alpha=alpha))
    else:
        objective = logits_objective(parse_distill({"teacher": "text"}), None)
        attach_distill_forward(model, [objective], None)
    out = model(**text)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(expected, rel=1e-5)
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, gradients[name]) < 1e-4, name
    total, weight = out.metrics["loss"]
    assert total / weight == pytest.approx(expected, rel=1e-5)


def test_weights_of_one_change_nothing(tiny_model, tokenizer, store):
    """The same loss and gradients as without the column."""
    batch = weighted_batch(store, tokenizer)
    ones = (batch["shift_labels"] != -100).float()
    losses, grads = [], []
    for extra in ({}, {TARGET_WEIGHT: ones}):
        model = tiny_model()
        attach(model, settings(tokenizer))
        loss = model(**{**batch, TARGET_WEIGHT: None, **extra}).loss
        loss.backward()
        losses.append(loss.item())
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, gradient in grads[0].items():
        assert relative_error(grads[1][name], gradient) < 1e-5, name


def test_a_batch_without_a_label_has_no_loss(tiny_model, tokenizer, store):
    batch = weighted_batch(store, tokenizer)
    model = tiny_model()
    attach(model, settings(tokenizer))
    empty = {"shift_labels": torch.full_like(batch["labels"], -100)}
    empty[TARGET_WEIGHT] = torch.zeros_like(batch[TARGET_WEIGHT])
    loss = model(**{**batch, **empty}).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_a_step_without_a_label_has_no_loss(tiny_model, tokenizer, store, count):
    """Nor a gradient; the Trainer's count of it is 0."""
    batch = weighted_batch(store, tokenizer)
    model = tiny_model()
    attach(model, settings(tokenizer))
    empty = {"shift_labels": torch.full_like(batch["labels"], -100), TARGET_WEIGHT: None}
    loss = model(**{**batch, **empty}, num_items_in_batch=count).loss
    loss.backward()
    assert loss.item() == 0.0
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and not any(gradient.any() for gradient in grads)


def test_weights_however_small_divide_what_they_weigh(tiny_model, tokenizer, store):
    batch = weighted_batch(store, tokenizer)
    model = tiny_model()
    attach(model, settings(tokenizer))
    tiny = {**batch, TARGET_WEIGHT: batch[TARGET_WEIGHT] * 1e-12}
    assert model(**tiny).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-4)


def test_the_divisor_is_the_steps_and_not_the_batchs(tiny_model, tokenizer, store):
    batch = weighted_batch(store, tokenizer)
    model = tiny_model()
    attach(model, settings(tokenizer))
    total = batch[TARGET_WEIGHT].sum()
    alone = model(**batch).loss
    in_step = model(**batch, num_items_in_batch=4 * total).loss
    assert in_step.item() == pytest.approx(alone.item() / 4, rel=1e-5)


@pytest.mark.parametrize("tokens", [0.0, 3.0])
def test_means_of_nothing_are_left_out(tokens):
    """Without a token, or with weights that sum to 0."""
    sums = MetricSums()
    sums.add(of(loss=(5.0, 0.0), ce=(6.0, tokens), entropy=(0.0, tokens), kl=(0.0, 0.0)))
    means = sums.means(Accelerator())
    assert means == ({"ce": 2.0, "entropy": 0.0} if tokens else {})


def test_mean_loss_of_an_evaluation():
    """Sums over all batches, divided once."""
    sums = MetricSums()
    for weight in (0.5, 1.5):
        sums.add(of(loss=(3.0, weight), ce=(6.0, 3.0), kl=(6.0, 0.0)))
    assert sums.means(Accelerator()) == {"loss": 3.0, "ce": 2.0}
    assert sums.means(Accelerator()) == {}


def of(**metrics):
    return {name: tuple(map(torch.tensor, pair)) for name, pair in metrics.items()}
