"""A teacher who sees more than the student: it says of a text what it says of it after its context,
at the positions of the text."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.live import IGNORE, attach, live, packed, padded, texts
from support.model_types import tiny

from axolotl_distill.config.distill import parse_distill
from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.context import Context
from axolotl_distill.teachers.itself import SelfTeacher

TEXTS = texts([17, 9, 24, 5], seed=3)
BATCHES = {"packed": packed(TEXTS), "right": padded(TEXTS), "left": padded(TEXTS, left=True)}
SHOWN = (40, 41, 42, 43, 44, 45, 46)
CONTEXTS = {
    "before": Context(SHOWN),
    "after_bos": Context(SHOWN, bos=TEXTS[1]["input_ids"][0]),
}


def full():
    return tiny("llama")


def adapted(targets=("q_proj",)):
    """With an adapter that does something."""
    lora = LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM")
    lora.target_modules = set(targets)
    torch.manual_seed(1)
    return get_peft_model(tiny("llama"), lora)


def with_head():
    return adapted(["q_proj", "lm_head"])


def causal(model):
    return getattr(model, "get_base_model", lambda: model)()


@torch.no_grad()
def expected_of(model, text, context, shown=SHOWN):
    """Row by row: the model's own log-probabilities of each learnt token's place, of a text that
    is grown by hand."""
    found = []
    ids = text["input_ids"]
    for at in range(1, len(ids)):
        if text["labels"][at] == IGNORE:
            continue
        read = [*shown, *ids[:at]]
        if ids[0] == context.bos:
            read = [ids[0], *shown, *ids[1:at]]
        found.append(model(input_ids=torch.tensor([read])).logits[0, -1].log_softmax(-1))
    return torch.stack(found)


def said_of(source, batch):
    targets = batch["shift_labels"].flatten()
    rows = (targets != IGNORE).nonzero().flatten()
    said = source.signal(batch, rows, batch).distribution
    if hasattr(said, "logits"):
        return said.logits.log_softmax(-1)
    return (said.hidden @ said.weight.t()).log_softmax(-1)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("make", [full, adapted, with_head])
@pytest.mark.parametrize("weights", ["base", "now"])
def test_it_grades_by_what_it_was_shown(name, context, make, weights):
    if (make, weights) == (full, "base"):
        pytest.skip("has no adapter to be switched off")
    model = make().train()
    own = tiny("llama") if weights == "base" else make().eval()
    expected = torch.cat([expected_of(own, text, context) for text in TEXTS])
    source = live(tiny("llama"), context=context)
    source.teacher = SelfTeacher(causal(model), weights)
    torch.testing.assert_close(said_of(source, BATCHES[name]), expected, rtol=1e-4, atol=1e-4)
    assert all(m.training for m in model.modules() if "Dropout" in type(m).__name__)


OWN = [[40, 41, 42], [50] * 9, [], [60, 61]]
"""What is read before each of TEXTS, by its row."""


def with_contexts(name):
    """A batch of TEXTS with the columns of their contexts, which lie in another order."""
    batch = dict(BATCHES[name])
    number = torch.full_like(batch["input_ids"], -1)
    if name == "packed":
        first = 0
        for row, text in enumerate(TEXTS):
            number[0, first : first + len(text["input_ids"])] = row
            first += len(text["input_ids"])
    else:
        for row, mask in enumerate(batch["attention_mask"]):
            number[row][mask == 1] = row
    order = [3, 1, 0, 2]
    ids = [token for row in order for token in OWN[row]]
    numbers = [row for row in order for _ in OWN[row]]
    return batch | {
        "row_number": number,
        "teacher_context": torch.tensor([[*ids, -1]]),
        "context_number": torch.tensor([[*numbers, -1]]),
    }


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("bos", [None, TEXTS[1]["input_ids"][0]])
@pytest.mark.parametrize("weights", ["base", "now"])
def test_each_row_brings_its_own(name, bos, weights):
    model = adapted().train()
    own = tiny("llama") if weights == "base" else adapted().eval()
    context = Context(bos=bos)
    expected = torch.cat(
        [expected_of(own, text, context, shown) for text, shown in zip(TEXTS, OWN, strict=True)]
    )
    source = live(tiny("llama"), context=context, by_row=True)
    source.teacher = SelfTeacher(causal(model), weights)
    said = said_of(source, with_contexts(name))
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)
    # And not what it says of the text alone.
    plain = torch.cat([expected_of(own, text, context, ()) for text in TEXTS])
    assert (said - plain).abs().max() > 1e-2


def test_the_loss_draws_the_student_to_what_it_would_say_of_more():
    student = full()
    source = live(tiny("llama"), context=CONTEXTS["before"])
    source.teacher = SelfTeacher(student, "now")
    attach(student, source, alpha=1.0)
    out = student(**BATCHES["right"])
    own = full()
    p = torch.cat([expected_of(own, text, CONTEXTS["before"]) for text in TEXTS])
    targets = BATCHES["right"]["shift_labels"].flatten()
    keys = {k: BATCHES["right"][k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        q = own(**keys).logits.flatten(0, 1)[targets != IGNORE].log_softmax(-1)
    assert out.loss.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    out.loss.backward()
    assert student.get_input_embeddings().weight.grad.abs().sum() > 0


def test_what_is_heard_of_a_text_is_the_text():
    """Kept rollouts know a text again by its tokens."""
    heard = []
    source = live(tiny("llama"), context=CONTEXTS["before"])
    source.heard = lambda text, part, said: heard.append((tuple(text), part))
    said_of(source, BATCHES["right"])
    assert {text for text, _ in heard} == {tuple(text["input_ids"]) for text in TEXTS}


def test_a_call_is_no_larger_than_the_student_s_batch_or_one_document():
    seen = []

    class Counts(SelfTeacher):
        def grade(self, rows, positions, want):
            seen.append([len(row) for row in rows.values()])
            yield from super().grade(rows, positions, want)

    source = live(tiny("llama"), context=CONTEXTS["before"])
    source.teacher = Counts(full(), "now")
    said_of(source, BATCHES["packed"])
    budget = BATCHES["packed"]["input_ids"].numel()
    assert sum(map(len, seen)) == len(TEXTS)
    assert all(len(call) == 1 or max(call) * len(call) <= budget for call in seen)


def test_layers_are_those_of_the_text():
    positions = {0: np.array([5, 9])}
    text = TEXTS[0]["input_ids"]
    teacher, context = SelfTeacher(full(), "now"), CONTEXTS["before"]
    want = Want(unprojected=True, layers=(0,))
    read = {0: context.before(text)}
    ((_, _, signal),) = teacher.grade(read, {0: context.at(positions[0])}, want)
    with torch.no_grad():
        states = full()(input_ids=torch.tensor([[*SHOWN, *text]]), output_hidden_states=True)
    expected = states.hidden_states[1][0, [12, 16]]
    found = signal.layers[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_writes_has_read_it_too():
    """A prompt has room for its answer as if nothing had been put before it."""
    prompts = [text["input_ids"][:5] for text in TEXTS]
    from contextlib import nullcontext

    def writer(context, shown):
        args = OnPolicyArgs(max_new_tokens=12)
        return Writer(full(), nullcontext, args, (2,), 2, context, lambda _: True, shown=shown)

    found = writer(15, Context(SHOWN)).write(prompts, seed=3)
    expected = writer(15 + len(SHOWN), Context()).write([[*SHOWN, *p] for p in prompts], seed=3)
    assert found == expected and max(len(c.ids) for c in found) == 10


def test_as_a_yaml_says_it():
    teacher = parse_distill({"teacher": {"self": True, "context": "The key is 7."}}).teacher
    assert teacher.own_weights == "now"
    block = {"self": True, "context": "The key is 7.", "weights": "base"}
    assert parse_distill({"teacher": block}).teacher.own_weights == "base"
    assert parse_distill({"teacher": "self"}).teacher.own_weights == "base"
