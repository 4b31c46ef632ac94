"""A teacher whose weights are the student's, averaged over its steps."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.live import IGNORE, attach, live, padded, texts
from support.model_types import tiny

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.teachers.average import Average
from axolotl_distill.teachers.itself import SelfTeacher

BATCH = padded(texts([17, 9, 24, 5], seed=3))
DECAY = 0.75


def full():
    return tiny("llama")


def adapted():
    lora = LoraConfig(r=4, lora_dropout=0.5, task_type="CAUSAL_LM")
    lora.target_modules, lora.modules_to_save = {"q_proj"}, ["lm_head"]
    torch.manual_seed(1)
    return get_peft_model(tiny("llama"), lora)


def learning(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def walk(model, steps):
    """Random steps, and the weights after each, in float64."""
    torch.manual_seed(2)
    for _ in range(steps):
        with torch.no_grad():
            for weight in learning(model).values():
                weight.add_(0.05 * torch.randn_like(weight))
        yield {n: p.detach().double().clone() for n, p in learning(model).items()}


def averaged(model, steps=3):
    """A student some steps on, its teacher, and the average by the formula."""
    causal_lm = getattr(model, "get_base_model", lambda: model)()
    average = Average(causal_lm, DECAY)
    average.begin()
    expected = {n: p.detach().double().clone() for n, p in learning(causal_lm).items()}
    for weights in walk(causal_lm, steps):
        average.update()
        for name, value in weights.items():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * value
    return causal_lm, average, expected


@pytest.mark.parametrize("make", [full, adapted])
def test_it_is_the_formula_and_grades_by_it(make):
    model = make().train()
    causal_lm, average, expected = averaged(model)
    assert average.weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(average.weights[name].double(), value, rtol=1e-5, atol=1e-6)
    own = {n: (p.data_ptr(), p.detach().clone()) for n, p in causal_lm.named_parameters()}

    source = live(tiny("llama"))
    source.teacher = SelfTeacher(causal_lm, "average", average)
    targets = BATCH["shift_labels"].flatten()
    rows = (targets != IGNORE).nonzero().flatten()
    said = source.signal(BATCH, rows, BATCH).distribution
    found = said.hidden @ said.weight.t()

    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, weight in learning(getattr(other, "get_base_model", lambda: other)()).items():
            weight.copy_(expected[name])
        keys = {k: BATCH[k] for k in ("input_ids", "attention_mask")}
        of_average = other(**keys).logits.flatten(0, 1)[rows]
        of_student = model.eval()(**keys).logits.flatten(0, 1)[rows]
    torch.testing.assert_close(found, of_average, rtol=1e-4, atol=1e-4)
    assert (found - of_student).abs().max() > 0.05
    for name, weight in causal_lm.named_parameters():
        pointer, value = own[name]
        assert weight.data_ptr() == pointer and torch.equal(weight, value)


def test_the_student_is_itself_again_whatever_happened():
    causal_lm, average, _ = averaged(full())
    before = causal_lm.lm_head.weight.detach().clone()
    with pytest.raises(RuntimeError), average.in_place():
        assert not torch.equal(causal_lm.lm_head.weight, before)
        raise RuntimeError
    assert torch.equal(causal_lm.lm_head.weight, before)


def test_the_gradient_is_the_student_s():
    """Also of a head whose weights the teacher has had others of."""
    causal_lm, average, expected = averaged(full())
    teacher = tiny("llama")
    with torch.no_grad():
        for name, weight in learning(teacher).items():
            weight.copy_(expected[name])
    other = copy.deepcopy(causal_lm)
    source = live(tiny("llama"))
    source.teacher = SelfTeacher(causal_lm, "average", average)
    for student, asked in ((causal_lm, source), (other, live(teacher))):
        attach(student, asked, alpha=1.0)
        student(**BATCH).loss.backward()
    for name, weight in learning(other).items():
        torch.testing.assert_close(
            learning(causal_lm)[name].grad, weight.grad, rtol=1e-3, atol=1e-5
        )


def test_small_steps_of_weights_in_bf16_are_not_lost():
    model = full().bfloat16()
    average = Average(model, 0.999)
    average.begin()
    first = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.25)
    for _ in range(200):
        average.update()
    share = 1 - 0.999**200
    expected = first.double() * (1 + 0.25 * share)
    torch.testing.assert_close(
        average.weights["lm_head.weight"].double(), expected, rtol=1e-3, atol=1e-5
    )
    with average.in_place():
        assert model.lm_head.weight.dtype == torch.bfloat16
        assert (model.lm_head.weight != first).float().mean() > 0.9


def test_what_is_loaded_is_of_the_same_student():
    _, average, _ = averaged(full())
    kept = {name: weight.clone() for name, weight in average.weights.items()}
    another = Average(full(), DECAY)
    another.load(kept)
    another.begin()
    assert all(torch.equal(another.weights[name], kept[name]) for name in kept)
    missing = {name: weight for name, weight in kept.items() if name != "lm_head.weight"}
    with pytest.raises(ConfigError, match=r"1 differ .*lm_head\.weight"):
        another.load(missing)


def test_nothing_learns():
    with pytest.raises(ConfigError, match="nothing to average"):
        Average(full().requires_grad_(False), DECAY).begin()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"ema": 1.0}, "less than 1"),
        ({"ema": 0.0}, "greater than 0"),
        ({"ema": 0.9, "weights": "base"}, "`ema: 0.9` is read without `weights` only"),
        ({"self": False, "model": "m", "ema": 0.9}, "is read by `self: true` only"),
    ],
)
def test_what_a_yaml_may_not_say(block, said):
    with pytest.raises(ConfigError) as refused:
        parse_distill({"teacher": {"self": True, **block}})
    assert said in str(refused.value)


def test_as_a_yaml_says_it():
    for more in ({}, {"context": "x"}):
        teacher = parse_distill({"teacher": {"self": True, "ema": 0.99, **more}}).teacher
        assert teacher.own_weights == "average" and teacher.ema == 0.99
