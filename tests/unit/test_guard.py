"""Optimizer steps of nothing, and steps that are not finite, in the real Trainer."""

from itertools import pairwise

import datasets
import pytest
import torch
from distill_kernels import DistillSpec
from support.losses import shifted
from support.sharded import VOCAB, student
from transformers import Trainer, TrainerCallback, TrainingArguments

from axolotl_distill.errors import ConfigError, NotFiniteError
from axolotl_distill.host.supervision import check_supervision, describe_rows, unsupervised_rows
from axolotl_distill.host.trainer import DistillMixin
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import LogitsObjective

IGNORE = -100
SPEC = DistillSpec(alpha=0.0, support="renormalize", reduction="sum")
FULL, EMPTY = [5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25]


class DistillTrainer(DistillMixin, Trainer):
    """As AxolotlDistillTrainer, above the Trainer that Axolotl's own derives from."""


class Words:
    """Spells token ids out, so that a message's rows can be told apart."""

    padding_side = "right"

    def decode(self, ids):
        return " ".join(f"t{i}" for i in ids)


class Weights(TrainerCallback):
    """Keeps the parameters after each step."""

    def __init__(self, model):
        self.model, self.after = model, [snapshot(model)]

    def on_step_end(self, args, state, control, **_):
        self.after.append(snapshot(self.model))


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def rows(*supervised, first_label=False):
    made = []
    for at, has_label in enumerate(supervised):
        ids = [(token + 7 * at) % VOCAB for token in (FULL if has_label else EMPTY)]
        labels = [IGNORE, IGNORE, *ids[2:]] if has_label else [IGNORE] * len(ids)
        if first_label and not has_label:
            labels[0] = ids[0]
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(features):
    batch = shifted({name: torch.tensor([f[name] for f in features]) for name in features[0]})
    if "loss_weight" in batch:
        weights = batch.pop("loss_weight").roll(-1, 1)
        batch["target_weight"] = weights.masked_fill(batch["shift_labels"] == IGNORE, 0.0)
    return batch


def trainer_of(folder, data, model=None, evaluated=None, **options):
    model = model or student()
    attach_distill_forward(model, [LogitsObjective(SPEC, "torch", teacher=False)], None)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        learning_rate=0.01,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **{"per_device_train_batch_size": 1, "max_steps": len(data), **options},
    )
    dataset = datasets.Dataset.from_list(data)
    evaluated = None if evaluated is None else datasets.Dataset.from_list(evaluated)
    trainer = DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        eval_dataset=evaluated,
        data_collator=collate,
        processing_class=None,
    )
    trainer._guard.tokenizer = Words()
    trainer.add_callback(kept := Weights(model))
    return trainer, kept.after


def moved(before, after):
    return any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"optim": "sgd"}])
def test_a_step_without_a_label_changes_nothing(tmp_path, options):
    """Neither by weight decay nor by the momentum of the steps before; the next one learns."""
    trainer, weights = trainer_of(tmp_path, rows(True, False, True), **options)
    trainer.train()
    assert [moved(a, b) for a, b in pairwise(weights)] == [True, False, True]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[1]["loss"] == 0 and logged[1]["grad_norm"] == 0
    assert "distill/ce" not in logged[1] and logged[2]["distill/ce"] > 1


def test_empty_micro_batches_count_for_nothing(tmp_path):
    """Accumulated with others they give the step of the others alone."""
    mixed, full = rows(True, False, False, True), rows(True, False, False, True)
    of_mixed = trainer_of(tmp_path, mixed, gradient_accumulation_steps=4, max_steps=1)
    of_full = trainer_of(tmp_path, [full[0], full[3]], gradient_accumulation_steps=2, max_steps=1)
    for trainer, _ in (of_mixed, of_full):
        trainer.train()
    for name, expected in of_full[1][-1].items():
        torch.testing.assert_close(of_mixed[1][-1][name], expected, rtol=0, atol=1e-6)


def test_all_micro_batches_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("axolotl_distill.host.trainer.check_supervision", lambda *a: None)
    trainer, weights = trainer_of(
        tmp_path, rows(False, False), gradient_accumulation_steps=2, max_steps=1
    )
    trainer.train()
    assert not moved(weights[0], weights[1])


def test_weights_that_sum_to_zero(tmp_path):
    data = rows(True, True)
    for row, weight in zip(data, (0.0, 1.0), strict=True):
        row["loss_weight"] = [weight] * len(row["input_ids"])
    trainer, weights = trainer_of(tmp_path, data)
    trainer.train()
    assert not moved(weights[0], weights[1]) and moved(weights[1], weights[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_rows(tmp_path, value):
    """A token's embedding is not finite: the step before it is good, its own is not taken."""
    data = rows(True, True, True)
    model = student()
    with torch.no_grad():
        model.model.embed_tokens.weight[data[1]["input_ids"][3]] = value
    trainer, weights = trainer_of(tmp_path, data, model, gradient_accumulation_steps=3, max_steps=1)
    with pytest.raises(NotFiniteError, match=r"(?s)Step 1 .*1 of its 3 micro-batches") as caught:
        trainer.train()
    message = str(caught.value)
    assert "t12 t13 t14 t15 t16 t17" in message and "t5 t6 t7" not in message
    assert "model.embed_tokens.weight" in message and "learning_rate" in message
    assert len(weights) == 1


class BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
    model = student()
    model.model.norm.register_forward_hook(lambda module, args, out: BrokenGradient.apply(out))
    trainer, weights = trainer_of(tmp_path, rows(True, True), model)
    with pytest.raises(NotFiniteError, match="norm of its gradient") as caught:
        trainer.train()
    assert "t5 t6 t7" in str(caught.value) and "Not finite before" not in str(caught.value)
    assert not moved(weights[0], snapshot(model))


def test_a_scaler_may_skip_a_step_until_it_has_nothing_left_to_scale(tmp_path):
    trainer, _ = trainer_of(tmp_path, rows(True))
    guard, batch = trainer._guard, collate(rows(True))

    def judge(scale):
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.accelerator.scaler.scale(torch.ones(()))
        guard.gradient_norm = torch.tensor(float("inf"))
        guard.saw(batch, torch.tensor(1.0), torch.tensor(4))
        guard.on_pre_optimizer_step(
            trainer.args, trainer.state, trainer.control, model=trainer.model, optimizer=None
        )

    judge(65536.0)
    with pytest.raises(NotFiniteError):
        judge(1.0)


def test_an_evaluation_counts_what_is_supervised(tmp_path):
    trainer, _ = trainer_of(tmp_path, rows(True), evaluated=rows(True, False))
    alone, _ = trainer_of(tmp_path, rows(True), evaluated=rows(True))
    expected, seen = alone.evaluate(), trainer.evaluate()
    assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    nothing = trainer.evaluate(datasets.Dataset.from_list(rows(False, False)))
    assert "eval_loss" not in nothing
    assert all(value == value for value in nothing.values())


@pytest.mark.parametrize("first_label", [False, True])
def test_rows_without_a_label_are_counted_and_named(caplog, first_label):
    """Nothing predicts a row's first token, so a label on it alone is none."""
    made = datasets.Dataset.from_list(
        [*rows(True, False, True, first_label=first_label), {"input_ids": [], "labels": []}]
    )
    assert unsupervised_rows(made).tolist() == [1, 3]
    assert unsupervised_rows(made.select([2, 1, 0, 1])).tolist() == [1, 3]
    assert unsupervised_rows(made.select([0, 2])).size == 0
    with caplog.at_level("WARNING"):
        check_supervision({"training set": made, "evaluation set": None}, Words())
    assert "2 of 4 rows of the training set" in caplog.text and "t27 t28" in caplog.text


def test_a_dataset_without_a_label_is_refused():
    made = datasets.Dataset.from_list(rows(False, False))
    with pytest.raises(ConfigError, match=r"None of the 2 rows of the evaluation set .*t20 t21"):
        check_supervision({"evaluation set": made}, Words())


def test_rows_of_a_packed_batch():
    """Each document by the text around its first supervised token; padding is none."""
    batch = {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6, 0, 0]]),
        "shift_labels": torch.tensor([[-100, 3, -100, 5, 6, -100, -100, -100]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 0, 0]]),
    }
    assert describe_rows(batch, Words()) == ["'t1 t2 t3'", "'t4 t5 t6'"]
