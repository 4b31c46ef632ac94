"""A teacher that answers while the student trains: its loss is that of its own logits."""

import asyncio
from typing import get_args

import numpy as np
import pytest
import torch
from distill_kernels import DenseLogits, DistillSpec, distill_loss
from peft import LoraConfig, get_peft_model
from support.faulty_server import FaultyServer
from support.live import ALL, IGNORE, another, attach, by_formula, live, packed, padded, texts
from support.model_server import ModelServer
from support.model_types import VOCAB, tiny

from axolotl_distill.config.distill import DistillArgs, Divergence, parse_distill
from axolotl_distill.errors import ConfigError, ServerError, TokenizerMismatchError
from axolotl_distill.signal.documents import documents
from axolotl_distill.signal.live import Reading, live_signal
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.itself import SelfTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary

TEXTS = texts([17, 9, 24, 5])
BATCHES = {
    "packed": packed(TEXTS),
    "right": padded(TEXTS),
    "left": padded(TEXTS, left=True),
    # As Axolotl's streaming packer has it: only the positions tell, and padding is a document.
    "by_position": {k: v for k, v in packed(TEXTS).items() if k != "attention_mask"},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_documents(batch):
    ids = batch["input_ids"].flatten().tolist()
    found = [ids[document] for document in documents(batch)]
    assert found[: len(TEXTS)] == [text["input_ids"] for text in TEXTS]
    assert not any(map(sum, found[len(TEXTS) :]))


def loss_of(batch, divergence="forward_kl", temperature=1.0, student=None, source=None, **args):
    student = student or tiny("llama")
    source = source or live(another(), temperature)
    attach(student, source, divergence=divergence, **args)
    return student(**batch)


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_formula(divergence, temperature):
    args = DistillArgs(
        teacher="m", divergence=divergence, temperature=temperature, alpha=0.6, **beta(divergence)
    )
    expected = by_formula(tiny("llama"), another(), TEXTS, args)
    given = {"divergence": divergence, "alpha": 0.6, **beta(divergence)}
    out = loss_of(BATCHES["right"], temperature=temperature, **given)
    assert out.loss.item() == pytest.approx(expected, rel=2e-5)
    out.loss.backward()


def beta(divergence):
    return {"beta": 0.3} if divergence == "jsd" else {}


@pytest.mark.parametrize("name", BATCHES)
def test_however_the_batch_is_laid_out(name):
    """The student's attention keeps packed documents apart where positions alone are given; where
    it does not, that is Axolotl's to see to, so here only the teacher is looked at."""
    source, batch = live(another()), BATCHES[name]
    targets = batch["shift_labels"].flatten()
    rows = torch.cat([torch.zeros(1, dtype=torch.int64), (targets != IGNORE).nonzero().flatten()])
    said = source.signal(batch, rows, batch).distribution
    logits = said.hidden @ said.weight.t()
    alone = []
    for text in TEXTS:
        with torch.no_grad():
            found = another()(input_ids=torch.tensor([text["input_ids"]]), use_cache=False).logits
        at = [t for t, label in enumerate(text["labels"][1:]) if label != IGNORE]
        alone.append(found[0, at])
    torch.testing.assert_close(logits[1:], torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("b", [0.0, 0.1, 0.5, 1.0])
def test_trl_s_generalized_jsd(b):
    """TRL's is ours times b (1 - b) within; at the ends both are the KL."""
    from trl.experimental.gkd import GKDTrainer

    batch = BATCHES["right"]
    keys = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        q, p = (m(**keys, use_cache=False).logits for m in (tiny("llama"), another()))
    expected = GKDTrainer.generalized_jsd_loss(q, p, batch["shift_labels"], beta=b, temperature=1.0)
    ours = loss_of(batch, "jsd", beta=b, alpha=1.0).loss.item()
    ours *= b * (1 - b) if 0 < b < 1 else 1.0
    assert ours == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_teacher_that_is_the_student(divergence):
    given = {"divergence": divergence, **beta(divergence), "alpha": 1.0, "temperature": 2.0}
    out = loss_of(BATCHES["right"], source=live(tiny("llama"), 2.0), **given)
    assert abs(out.loss.item()) < 1e-6


def test_nothing_is_learnt_from_a_batch_without_targets():
    batch = {**BATCHES["right"]}
    batch["shift_labels"] = torch.full_like(batch["shift_labels"], IGNORE)
    student = tiny("llama")
    out = loss_of(batch, student=student)
    assert out.loss.item() == 0.0
    out.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def test_however_a_step_is_cut_into_micro_batches():
    items = sum((BATCHES["right"]["shift_labels"] != IGNORE).sum(1))
    found = []
    for cuts in ([TEXTS], [TEXTS[:1], TEXTS[1:]], [[text] for text in TEXTS]):
        student = tiny("llama")
        attach(student, live(another()))
        loss = sum(student(**padded(some), num_items_in_batch=items).loss for some in cuts)
        loss.backward()
        grad = student.get_input_embeddings().weight.grad
        found.append((loss.item(), grad))
    for loss, grad in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-4, atol=1e-6)


def test_the_teacher_is_no_part_of_the_student(tmp_path):
    student, teacher = tiny("llama"), another()
    names = set(dict(student.named_parameters()))
    teacher.train()
    loss_of(BATCHES["right"], student=student, source=live(teacher)).loss.backward()
    assert set(dict(student.named_parameters())) == names
    assert all(p.grad is None for p in teacher.parameters())


def test_a_head_that_cannot_be_read_gives_its_logits(monkeypatch, caplog):
    expected = loss_of(BATCHES["packed"]).loss.item()
    monkeypatch.setattr(
        "axolotl_distill.teachers.hf.plan_head", lambda *_: (None, "for a test's sake")
    )
    assert loss_of(BATCHES["packed"]).loss.item() == pytest.approx(expected, rel=1e-6)
    assert "for a test's sake" in caplog.text


def test_autocast_does_not_reach_the_teacher():
    source = live(another())
    batch = BATCHES["right"]
    rows = (batch["shift_labels"].flatten() != IGNORE).nonzero().flatten()
    plain = source.signal(batch, rows, batch).distribution.hidden
    with torch.autocast("cpu", torch.bfloat16):
        seen = source.signal(batch, rows, batch).distribution.hidden
    assert torch.equal(plain, seen)


def adapted(**changes):
    lora = LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False, task_type="CAUSAL_LM")
    lora.target_modules = {"q_proj", "lm_head"}
    for key, value in changes.items():
        setattr(lora, key, value)
    torch.manual_seed(1)
    return get_peft_model(tiny("llama"), lora)


@pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "saved"])
def test_the_student_with_its_adapter_off_is_its_base(changes):
    changes = {**changes, "target_modules": {"q_proj"} if changes else {"q_proj", "lm_head"}}
    model = adapted(**changes).train()
    causal_lm = model.get_base_model()
    if "modules_to_save" in changes:
        with torch.no_grad():
            causal_lm.lm_head.modules_to_save["default"].weight.mul_(1.5)
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    model.model.model.norm.eval()
    before = {n: (m.training) for n, m in model.named_modules()}
    wants = {n: p.requires_grad for n, p in model.named_parameters()}
    batch = BATCHES["packed"]
    rows = (batch["shift_labels"].flatten() != IGNORE).nonzero().flatten()
    itself = SelfTeacher(causal_lm)
    source = live(tiny("llama"))
    base = source.signal(batch, rows, batch).distribution
    source.teacher = itself
    said = source.signal(batch, rows, batch).distribution
    assert torch.equal(said.hidden, base.hidden) and torch.equal(said.weight, base.weight)
    assert before == {n: m.training for n, m in model.named_modules()}
    assert wants == {n: p.requires_grad for n, p in model.named_parameters()}
    assert not frozen.requires_grad
    # And the adapter is on again, which is not what the base says.
    with torch.no_grad():
        q, p = (m.eval()(**keys_of(batch)).logits for m in (model, tiny("llama")))
    assert (q - p).abs().max() > 0.1


def keys_of(batch):
    return {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}


def test_learning_from_itself():
    """Another than its base, the student is drawn back to it, through the adapter alone."""
    model = adapted(lora_dropout=0.0)
    causal_lm = model.get_base_model()
    attach(causal_lm, live(tiny("llama")), alpha=1.0)
    expected = model(**BATCHES["right"]).loss
    model = adapted(lora_dropout=0.0)
    source = live(tiny("llama"))
    source.teacher = SelfTeacher(model.get_base_model())
    attach(model.get_base_model(), source, alpha=1.0)
    loss = model(**BATCHES["right"]).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and loss.item() > 0.01
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained and all("lora_" in name for name in trained)


def test_finding_out_about_the_head_draws_nothing():
    """A run that is resumed finds out again, and its dropout must go on as it would have."""
    model = adapted().train()
    attach(model.get_base_model(), live(tiny("llama")))
    found = []
    for _ in range(2):
        torch.manual_seed(9)
        found.append(model(**BATCHES["right"]).loss.item())
    assert found[0] == found[1]


class Served:
    """`another` behind the wire format of an engine; SmolLM2's words are not needed."""

    def __init__(self, engine, k, faults=lambda *_: None, **changes):
        self.served = ModelServer(another(), None, max_logprobs=VOCAB)
        self.server = FaultyServer(self.served.handlers, faults)
        self.engine, self.k, self.changes = engine, k, changes

    def __enter__(self):
        url = self.server.__enter__().url
        reached = {"base_url": url, "engine": self.engine, "retries": 2, "timeout": 5.0}
        block = {"model": "teacher", "server": reached}
        self.args = DistillArgs(teacher=block, k=self.k, **self.changes)
        self.source = live_signal(self.args, self.args.teacher, Reading(ALL), tiny("llama"))
        return self.source

    def __exit__(self, *error):
        self.source.teacher.__exit__(*error)
        self.server.__exit__(*error)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_a_server_that_gives_all_is_the_model(engine, divergence):
    given = {"divergence": divergence, **beta(divergence), "alpha": 1.0}
    expected = loss_of(BATCHES["packed"], **given)
    with Served(engine, VOCAB, divergence=divergence) as source:
        seen = loss_of(BATCHES["packed"], source=source, **given)
    assert seen.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_s_likeliest_and_the_token_that_came(engine):
    batch = BATCHES["right"]
    targets = batch["shift_labels"].flatten()
    rows = (targets != IGNORE).nonzero().flatten()
    with Served(engine, 5) as source:
        said = source.signal(batch, rows, batch).distribution
    whole = live(another()).signal(batch, rows, batch).distribution
    expected = (whole.hidden @ whole.weight.t()).log_softmax(-1)
    for row, target in enumerate(targets[rows].tolist()):
        ids = [i for i in said.ids[row].tolist() if i >= 0]
        assert set(ids) == {*expected[row].topk(5).indices.tolist(), target}
        torch.testing.assert_close(
            said.logprobs[row, : len(ids)], expected[row, ids], rtol=1e-4, atol=1e-4
        )
        left = 1 - expected[row, ids].exp().sum()
        assert said.tail_logprob[row].exp().item() == pytest.approx(left.item(), abs=1e-5)


def test_renormalised_at_another_temperature():
    batch = BATCHES["right"]
    keys = {k: batch[k] for k in ("input_ids", "attention_mask")}
    targets = batch["shift_labels"].flatten()
    rows = (targets != IGNORE).nonzero().flatten()
    args = {"temperature": 2.0, "support": "renormalize"}
    with Served("vllm", VOCAB, **args) as source:
        said = source.signal(batch, rows, batch).distribution
    with torch.no_grad():
        q, p = (m(**keys).logits.flatten(0, 1)[rows] for m in (tiny("llama"), another()))
    spec = DistillSpec(alpha=1.0, temperature=2.0, support="renormalize")
    seen = distill_loss(q, said, targets[rows], spec=spec).loss
    whole = distill_loss(
        q, DenseLogits(p), targets[rows], spec=DistillSpec(alpha=1.0, temperature=2.0)
    )
    assert seen.item() == pytest.approx(whole.loss.item(), rel=1e-4)


def test_a_server_that_dies_in_mid_run():
    with Served("vllm", 4, faults=lambda number, *_: "500" if number > 3 else None) as source:
        attach(student := tiny("llama"), source)
        student(**BATCHES["right"])
        with pytest.raises(ServerError, match="resume_from_checkpoint"):
            student(**BATCHES["right"])


def test_answers_that_are_broken_are_asked_for_again():
    expected = loss_of(BATCHES["right"], source=None)
    spoilt = []

    def spoil(rows):
        spoilt.append(len(rows))
        kinds = [rows[:-1], [*rows[:8], None, *rows[9:]], rows]
        return kinds[min(len(spoilt), 3) - 1]

    served = Served("vllm", VOCAB)
    served.served.spoil = spoil
    with served as source:
        seen = loss_of({k: v[:1] for k, v in BATCHES["right"].items()}, source=source)
    alone = loss_of({k: v[:1] for k, v in BATCHES["right"].items()})
    assert len(spoilt) == 3 and expected.loss != alone.loss
    assert seen.loss.item() == pytest.approx(alone.loss.item(), rel=1e-4)


def spoilt(kind):
    def spoil(rows):
        first = rows[8]
        if kind == "short":
            return rows[:-1]
        if isinstance(first, dict):
            name = next(iter(first))
            about = {
                "nan": {**first, name: {**first[name], "logprob": float("nan")}},
                "none": {**first, name: {**first[name], "logprob": None}},
                "text": {**first, name: {**first[name], "logprob": "-1.0"}},
                "bare": {name: -1.0},
                "nameless": {name: {"rank": 1}},
                "list": [1, 2],
                "null": None,
                "number": 3,
                "infinite": {**first, name: {**first[name], "logprob": float("inf")}},
            }
        else:
            value, token, _ = first[0]
            about = {
                "nan": [[float("nan"), token, None]],
                "none": [[None, token, None]],
                "text": [["-1.0", token, None]],
                "bare": [value],
                "nameless": [[value]],
                "list": {"a": 1},
                "null": None,
                "number": 3,
                "infinite": [[float("inf"), token, None]],
            }
        return [*rows[:8], about[kind], *rows[9:]]

    return spoil


KINDS = ["short", "nan", "none", "text", "bare", "nameless", "list", "null", "number", "infinite"]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_answer_is_said_and_never_learnt_from(engine, kind, monkeypatch):
    monkeypatch.setattr("asyncio.sleep", no_sleep(asyncio.sleep))
    served = Served(engine, 4)
    served.served.spoil = spoilt(kind)
    with served as source:
        attach(student := tiny("llama"), source)
        with pytest.raises(ServerError, match="3 answers that cannot be used"):
            student(**{k: v[:1] for k, v in BATCHES["right"].items()})
    assert len(served.server.answered) == 3


def no_sleep(sleep):
    return lambda seconds: sleep(0)


def test_a_token_that_only_the_student_has():
    source = live(another())
    source.vocabulary = SharedVocabulary(size=VOCAB, foreign={TEXTS[2]["input_ids"][4]: "<new>"})
    with pytest.raises(TokenizerMismatchError, match=r"'<new>'.*only the student's"):
        loss_of(BATCHES["right"], source=source)


def test_a_padded_head_is_cut():
    """Ids beyond the shared vocabulary are no part of the teacher's distribution."""
    teacher = ModelTeacher(another(), "T", vocab_size=VOCAB - 6)
    text = {0: TEXTS[0]["input_ids"]}
    ((_, _, signal),) = teacher.grade(text, {0: np.array([3, 4])}, Want(unprojected=True))
    assert signal.distribution.weight.shape[0] == VOCAB - 6


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"teacher": {"self": True, "context": ""}}, "`context` is empty"),
        ({"teacher": {"self": True, "weights": "now"}}, "nothing to learn"),
        ({"teacher": {"model": "m", "context": "x"}}, "is read by `self: true` only"),
        ({"teacher": {"model": "m", "weights": "now"}}, "is read by `self: true` only"),
        ({"teacher": {"self": True, "weights": "then"}}, "must be one of base, now"),
        ({"teacher": "m", "support": "tail_bucket"}, "its whole distribution"),
        ({"teacher": "m", "k": 4}, "`k: 4` is not read without `teacher.server`"),
        ({"teacher": {"model": "m", "server": {"base_url": "http://h/v1"}}}, "vllm or sglang"),
    ],
)
def test_what_a_live_teacher_does_not_read(block, said):
    with pytest.raises(ConfigError) as refused:
        parse_distill(block)
    assert said in str(refused.value)


def test_a_server_at_another_temperature_is_refused():
    server = {"base_url": "http://h/v1", "engine": "vllm"}
    block = {"teacher": {"model": "m", "server": server}, "temperature": 2.0}
    with pytest.raises(ConfigError, match="log-probabilities at T=1"):
        parse_distill(block)
    assert parse_distill({**block, "support": "renormalize"}).temperature == 2.0


def test_self_is_a_word():
    assert parse_distill({"teacher": "self"}).teacher.self
