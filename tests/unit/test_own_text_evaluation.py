"""The student's own text in evaluations, and how much of its likeliest tokens is the teacher's."""

from contextlib import nullcontext

import pytest
import torch
from distill_kernels import DenseLogits, SparseTeacher
from peft import LoraConfig, get_peft_model
from support.live import ALL, IGNORE, another, padded, texts
from support.model_types import tiny

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.objectives.overlap import MOST, TOP, top_overlap
from axolotl_distill.objectives.student import Student, StudentOutput
from axolotl_distill.rollout.evaluate import OwnText
from axolotl_distill.rollout.repack import prompts_of
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import ModelTeacher

TEXTS = texts([17, 9, 24, 5], seed=3)
BATCH = padded(TEXTS)
ROWS = (BATCH["shift_labels"].flatten() != IGNORE).nonzero().flatten()
TARGETS = BATCH["shift_labels"].flatten()[ROWS]
KEYS = {k: BATCH[k] for k in ("input_ids", "attention_mask")}


def by_hand(q, p, k=TOP):
    rows = zip(q.topk(k).indices.tolist(), p.topk(k).indices.tolist(), strict=True)
    return sum(len({*own} & {*theirs}) / k for own, theirs in rows)


def student_and_logits(adapted):
    model = tiny("llama")
    if adapted:
        torch.manual_seed(1)
        lora = LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM")
        lora.target_modules = {"lm_head"}
        model = get_peft_model(model, lora)
    causal_lm = getattr(model, "get_base_model", lambda: model)()
    with torch.no_grad():
        logits = model.eval()(**KEYS).logits.flatten(0, 1)[ROWS]
        output = Student(causal_lm).run((), KEYS, ROWS)
    model.train()
    return output, logits


@torch.no_grad()
def teacher_logits():
    return another()(**KEYS).logits.flatten(0, 1)[ROWS]


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
def test_the_overlap_is_that_of_the_logits(adapted):
    """And nothing is drawn for it, though the head has dropout."""
    output, q = student_and_logits(adapted)
    assert output.head is not None
    p = teacher_logits()
    state = torch.get_rng_state()
    total, number = top_overlap(output, DenseLogits(p), TARGETS)
    assert torch.equal(state, torch.get_rng_state())
    assert number == len(ROWS) and total.item() == pytest.approx(by_hand(q, p))
    assert 0 < total < number
    same, number = top_overlap(output, DenseLogits(q), TARGETS)
    assert same == number


def test_of_every_kind_of_teacher():
    output, q = student_and_logits(False)
    p = teacher_logits()
    teacher = ModelTeacher(another(), "T", vocab_size=ALL.size)
    text = {0: TEXTS[0]["input_ids"]}
    at = [t for t, label in enumerate(TEXTS[0]["labels"][1:]) if label != IGNORE]
    ((_, _, said),) = teacher.grade(text, {0: torch.tensor(at).numpy()}, Want(unprojected=True))
    some = slice(0, len(at))
    first = StudentOutput(output.states[some], output.head, None, None)
    total, _ = top_overlap(first, said.distribution, TARGETS[some])
    assert total.item() == pytest.approx(by_hand(q[some], p[some]))
    # A server's few tokens, in any order, and a position of which it says nothing.
    logprobs, ids = p.log_softmax(-1).topk(5)
    ids, logprobs = ids.flip(1), logprobs.flip(1)
    ids[3], logprobs[3] = -1, -torch.inf
    others = torch.arange(len(ROWS)) != 3
    total, number = top_overlap(output, SparseTeacher(ids, logprobs), TARGETS)
    assert number == len(ROWS) - 1
    assert total.item() == pytest.approx(by_hand(q[others], p[others], 5))


def test_no_more_than_some_positions():
    states = torch.randn(5 * MOST, 40)
    targets = torch.zeros(5 * MOST, dtype=torch.int64)
    targets[: 2 * MOST] = IGNORE
    output = StudentOutput(states, None, None, None)
    total, number = top_overlap(output, DenseLogits(states), targets)
    assert total == number == MOST
    total, number = top_overlap(output, DenseLogits(states), torch.full_like(targets, IGNORE))
    assert total == number == 0


def own_text(most=3, context=60, **changes):
    args = OnPolicyArgs(max_new_tokens=12)
    writer = Writer(tiny("llama"), nullcontext, args, (2,), 2, context, lambda _: True)
    about = {"drop": False, "seed": 4, "rank": 0, **changes}
    collate = lambda rows: padded([{**row, "labels": row["labels"]} for row in rows])  # noqa: E731
    return OwnText(writer, most, collate=collate, packed=False, sequence_len=60, **about)


LOADER = [padded(TEXTS[:2]), padded(TEXTS[2:]), padded(TEXTS)]


def test_it_is_the_same_text_in_every_evaluation():
    writes = own_text()
    once, again = (list(writes.batches(LOADER)) for _ in range(2))
    assert len(once) == 2 and len(writes.written) == 3
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(once, again, strict=True)
    )
    prompts = [prompt.ids for prompt in prompts_of(LOADER)][:3]
    assert [prompt.ids for prompt in prompts_of(once)] == prompts
    other = list(own_text(rank=1).batches(LOADER))
    assert any(
        a["input_ids"].tolist() != b["input_ids"].tolist() for a, b in zip(once, other, strict=True)
    )
    sizes = writes.sizes(torch.device("cpu"))
    learnt = sum(int((batch["shift_labels"] != IGNORE).sum()) for batch in once)
    assert sizes["length"][0] == learnt and sizes["length"][1] == 3


def test_a_batch_without_room_has_nothing_learnt():
    writes = own_text(context=1)
    made = list(writes.batches(LOADER))
    assert len(made) == 3 and not writes.written
    assert all((batch["shift_labels"] == IGNORE).all() for batch in made)
    assert own_text(context=1).sizes(torch.device("cpu"))["length"][1] == 0
