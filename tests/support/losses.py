"""The distillation loss of a model two ways: from its own logits, and with our forward attached."""

from typing import NamedTuple

import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq
from distill_kernels import DistillSpec, distill_loss
from support.kernel_cases import relative_error
from support.stores import store_features

from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import LogitsObjective
from axolotl_distill.signal.entries import decode_entries
from axolotl_distill.signal.source import StoredSignal
from axolotl_distill.store import open_store


def shifted(batch):
    """A batch made by hand, of whole rows, with the targets that the collator would have added."""
    targets = torch.full_like(batch["labels"], -100)
    targets[:, :-1] = batch["labels"][:, 1:]
    return {**batch, "shift_labels": targets}


def batch_of(store, tokenizer, temperature=2.0, side="right"):
    tokenizer.padding_side = side
    collate = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[open_store(store)],
        temperature=temperature,
        return_tensors="pt",
    )
    return collate(store_features(tokenizer, store))


class Loss(NamedTuple):
    """A loss on the records of a store with so many token ids."""

    spec: DistillSpec
    vocab_size: int


def settings(tokenizer, temperature=2.0, alpha=0.7):
    spec = DistillSpec(temperature=temperature, alpha=alpha, reduction="sum")
    return Loss(spec, len(tokenizer))


def attach(model, how):
    source = StoredSignal(how.vocab_size, how.spec.support, how.spec.temperature)
    attach_distill_forward(model, [LogitsObjective(how.spec, "torch")], source)


def from_own_logits(model, batch, how):
    """The loss from the logits that the untouched model gives: what fusing must reproduce."""
    keys = ("input_ids", "attention_mask")
    logits = model(**{k: batch[k] for k in keys}, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    teacher = decode_entries(
        batch["teacher_entries"][:, :-1].flatten(0, 1),
        vocab_size=how.vocab_size,
        sampled=False,
        temperature=how.spec.temperature,
        tail=batch["teacher_tail"][:, :-1].flatten(),
    )
    mean = DistillSpec(temperature=how.spec.temperature, alpha=how.spec.alpha)
    return distill_loss(logits, teacher, targets, spec=mean).loss


def losses_and_gradients(model, base, batch, how):
    """Own logits first, then with the distillation forward attached."""
    results = []
    for attached in (False, True):
        if attached:
            attach(base, how)
            loss = model(**batch).loss
        else:
            loss = from_own_logits(model, batch, how)
        model.zero_grad()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((loss.item(), grads))
    return results


def agree(results, tolerance=1e-4):
    (expected, expected_grads), (seen, grads) = results
    assert seen == pytest.approx(expected, rel=tolerance)
    assert set(grads) == set(expected_grads)
    for name, gradient in expected_grads.items():
        assert relative_error(grads[name], gradient) < 1e-3, name
