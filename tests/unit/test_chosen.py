"""Several teachers, each for the rows that name it: what is learnt is the sum of what each would
have had learnt of its own rows alone."""

from typing import get_args

import pytest
import torch
from distill_kernels import DistillSpec
from peft import LoraConfig, get_peft_model
from support.live import ALL, IGNORE, another, by_formula, live, packed, padded, texts
from support.model_types import tiny

from axolotl_distill.config.distill import DistillArgs, Divergence, parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import LogitsObjective
from axolotl_distill.rollout.repack import prompts_of, silenced
from axolotl_distill.signal.chosen import ChosenSignal
from axolotl_distill.signal.live import Reading
from axolotl_distill.signal.source import signal_source
from axolotl_distill.teachers.tokenizer import SharedVocabulary, shared_by

TEXTS = texts([17, 9, 24, 5, 13])
CHOSEN = [1, 0, 1, 0, 1]
NAMES = ("math", "code")
BATCHES = {
    "packed": packed(TEXTS),
    "right": padded(TEXTS),
    "left": padded(TEXTS, left=True),
}


def choosing(name, chosen=CHOSEN):
    """A batch with the column as a collator has it: at the positions that predict a target."""
    batch = dict(BATCHES[name])
    choice = torch.full_like(batch["shift_labels"], -1)
    if name == "packed":
        first = 0
        for text, number in zip(TEXTS, chosen, strict=True):
            choice[0, first : first + len(text["input_ids"])] = number
            first += len(text["input_ids"])
    else:
        for row, number in enumerate(chosen):
            choice[row] = number
    choice[batch["shift_labels"] == IGNORE] = -1
    return batch | {"teacher_choice": choice}


def only(batch, number):
    """The rows of one teacher learnt, and all others read."""
    theirs = {name: values.clone() for name, values in batch.items() if name != "teacher_choice"}
    theirs["shift_labels"][batch["teacher_choice"] != number] = IGNORE
    return theirs


def third():
    """A model that is neither the student nor the other teacher."""
    model = another()
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter) * parameter.std())
    return model.eval()


TEACHERS = (another, third)


def several(temperature=1.0):
    sources = (live(make(), temperature) for make in TEACHERS)
    return ChosenSignal(dict(zip(NAMES, sources, strict=True)))


def trained(batch, source, student=None, overlap=False, **args):
    """(the output, the gradients by name) of a student and a batch."""
    student = student or tiny("llama")
    given = DistillArgs(teacher="m", **args)
    spec = DistillSpec(
        divergence=given.divergence, temperature=given.temperature, alpha=given.alpha,
        support="tail_bucket", reduction="sum",
    )  # fmt: skip
    causal_lm = student.get_base_model() if hasattr(student, "get_base_model") else student
    attach_distill_forward(causal_lm, [LogitsObjective(spec, "torch", overlap=overlap)], source)
    out = student(**batch, num_items_in_batch=1)
    out.loss.backward()
    learnt = {n: p.grad for n, p in student.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in learnt.values())
    return out, learnt


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_loss_and_gradient_are_the_sum_of_each_teacher_s(name, divergence):
    batch = choosing(name)
    given = {"divergence": divergence, "alpha": 0.6, "temperature": 2.0}
    out, grads = trained(batch, several(2.0), **given)
    alone = [
        trained(only(batch, number), live(make(), 2.0), **given)
        for number, make in enumerate(TEACHERS)
    ]
    assert out.loss.item() == pytest.approx(sum(o.loss.item() for o, _ in alone), rel=1e-6)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, alone[0][1][key] + alone[1][1][key], rtol=1e-4, atol=1e-5)
    kind = "kd" if divergence == "jsd" else "kl"
    for number, own in enumerate(NAMES):
        value, count = out.metrics[f"{kind}/{own}"]
        expected, rows = alone[number][0].metrics[kind]
        assert (value.item(), count.item()) == (pytest.approx(expected.item(), rel=1e-6), rows)
    for metric in ("ce", "entropy", kind, "teacher_mass", "top1_agreement"):
        value, count = out.metrics[metric]
        assert value.item() == pytest.approx(
            sum(o.metrics[metric][0].item() for o, _ in alone), rel=1e-6
        )
        assert count.item() == sum(o.metrics[metric][1].item() for o, _ in alone)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_the_loss_is_the_formula_of_each_row_s_own_teacher(divergence):
    """In float64, of every document by itself; and not that of the teachers exchanged."""
    args = DistillArgs(teacher="m", divergence=divergence, temperature=2.5, alpha=0.7)

    def expected(chosen):
        total = 0.0
        for number, make in enumerate(TEACHERS):
            own = [text for text, of in zip(TEXTS, chosen, strict=True) if of == number]
            tokens = sum(label != IGNORE for text in own for label in text["labels"])
            total += tokens * by_formula(tiny("llama"), make(), own, args)
        return total

    given = {"divergence": divergence, "temperature": 2.5, "alpha": 0.7}
    out, _ = trained(choosing("right"), several(2.5), **given)
    assert out.loss.item() == pytest.approx(expected(CHOSEN), rel=3e-5)
    assert out.loss.item() != pytest.approx(expected([1 - n for n in CHOSEN]), rel=1e-3)


@pytest.mark.parametrize("number", [0, 1, None])
def test_a_teacher_without_a_row_is_asked_of_nothing(number):
    """Every parameter has its gradient, if of zeros, and every batch the same metrics."""
    chosen = [0 if number is None else number] * len(TEXTS)
    batch = choosing("packed", chosen)
    if number is None:
        batch = silenced(batch)
        assert (batch["teacher_choice"] == -1).all()
    out, grads = trained(batch, several(), overlap=True)
    mixed, _ = trained(choosing("packed"), several(), overlap=True)
    assert list(out.metrics) == list(mixed.metrics)
    if number is None:
        assert out.loss.item() == 0.0 and not any(grad.any() for grad in grads.values())
        return
    assert out.metrics[f"kl/{NAMES[1 - number]}"][1].item() == 0
    alone, theirs = trained(only(batch, number), live(TEACHERS[number]()), overlap=True)
    assert out.loss.item() == pytest.approx(alone.loss.item(), rel=1e-6)
    assert out.metrics["overlap"][0].item() == pytest.approx(alone.metrics["overlap"][0].item())
    for key, grad in grads.items():
        torch.testing.assert_close(grad, theirs[key], rtol=1e-4, atol=1e-6)


def test_weights_and_an_adapter_on_the_head():
    def student():
        lora = LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM")
        lora.target_modules = {"q_proj", "lm_head"}
        torch.manual_seed(1)
        return get_peft_model(tiny("llama"), lora)

    batch = choosing("right")
    torch.manual_seed(2)
    batch["target_weight"] = torch.rand(batch["shift_labels"].shape)
    out, grads = trained(batch, several(), student())
    alone = [
        trained(only(batch, number), live(make()), student())
        for number, make in enumerate(TEACHERS)
    ]
    assert out.loss.item() == pytest.approx(sum(o.loss.item() for o, _ in alone), rel=1e-6)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, alone[0][1][key] + alone[1][1][key], rtol=1e-4, atol=1e-5)


def test_a_head_that_cannot_be_fused(monkeypatch):
    fused, _ = trained(choosing("right"), several())
    monkeypatch.setattr(
        "axolotl_distill.objectives.student.plan_head", lambda *_: (None, "for a test's sake")
    )
    out, _ = trained(choosing("right"), several())
    assert out.loss.item() == pytest.approx(fused.loss.item(), rel=1e-5)


def test_a_learnt_row_of_no_teacher_is_refused():
    batch = choosing("right")
    batch["teacher_choice"][2] = -1
    with pytest.raises(ConfigError, match=r"16 tokens .* none of the teachers \(math, c"):
        trained(batch, several())


@pytest.mark.parametrize("name", BATCHES)
def test_a_prompt_keeps_its_teacher(name):
    prompts = prompts_of([choosing(name)])
    assert [prompt.choice for prompt in prompts] == CHOSEN
    without = prompts_of([BATCHES[name]])
    assert {prompt.choice for prompt in without} == {-1}
    assert [prompt.ids for prompt in prompts] == [prompt.ids for prompt in without]


def test_what_all_of_them_read():
    one, two = SharedVocabulary(9, {3: "a"}), SharedVocabulary(7, {5: "b"})
    assert [token for token in range(12) if shared_by([one, two]).reads(token)] == [0, 1, 2, 4, 6]


def test_a_teacher_that_two_choices_name_is_loaded_once(tmp_path):
    folder = tmp_path / "teacher"
    another().save_pretrained(folder)
    third().save_pretrained(tmp_path / "third")
    choices = {"a": str(folder), "b": str(tmp_path / "third"), "c": {"model": str(folder)}}
    args = parse_distill({"teacher": {"column": "d", "choices": choices}})
    readings = {key: Reading(ALL) for key in args.teachers}
    made = signal_source(args, [], tiny("llama"), readings)
    a, b, c = made.sources.values()
    assert a is not c and a.teacher is c.teacher and a.teacher is not b.teacher
    assert made.support == "tail_bucket" and list(made.sources) == ["a", "b", "c"]
