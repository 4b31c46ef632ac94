"""uld, gold and alm over a live teacher with other tokens: held to their formulas in float64, to
TRL where TRL is right, and to what they are with one tokenizer on both sides."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from distill_kernels import DenseLogits
from support.explicit import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_distill.align import pair_rows
from axolotl_distill.align.survey import Survey
from axolotl_distill.config.cross_tokenizer import CrossTokenizerArgs
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.objectives import crossed
from axolotl_distill.objectives.alm import binary_kl
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.gold import alike_tokens
from axolotl_distill.objectives.methods import cross_objective
from axolotl_distill.signal.signal import Pairs, Want
from axolotl_distill.signal.spans import PairedSignal
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary

IGNORE = -100
ALPHA = 0.6
METHODS = {
    "uld": {"method": "uld"},
    "gold": {"method": "gold"},
    "gold, weighed": {"method": "gold", "weights": [0.3, 0.9]},
    "alm": {"method": "alm"},
    "alm, tempered": {"method": "alm", "binarization_temperature": 20.0},
}
THEIRS, OWN = ("a b", "ab Ġ", "c a", "Ġ b"), ("b c", "a Ġ", "bc a")


def model(pieces, seed, pad=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(pieces) + pad, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, tie_word_embeddings=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(40.0)
    return made


def row(theirs, own, text, first=True):
    """A prompt of two tokens of each side, and an answer with its end."""
    ends = theirs.tokenizer.eos_token_id, own.tokenizer.eos_token_id
    there = [*theirs.cut([text])[0], ends[0]]
    here = [*own.cut([text])[0], ends[1]]
    lead = [ends[1], 5] if first else []
    return {
        "teacher_input_ids": [ends[0], 7, 9, *there],
        "teacher_labels": [IGNORE, IGNORE, IGNORE, *there],
        "input_ids": [*lead, *here],
        "labels": [IGNORE] * len(lead) + here,
        "attention_mask": [1] * (len(lead) + len(here)),
        "position_ids": [*range(len(lead) + len(here))],
    }


def rows_of(theirs, own):
    """The last is learnt from its first token on, which nothing predicts."""
    made = [row(theirs, own, text) for text in ("abcab ba", "bc a", "ca bcab")]
    return [*made, row(theirs, own, "bcaab", first=False)]


def batch_of(own, rows, packed):
    own.tokenizer.pad_token = own.tokenizer.eos_token
    base = V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq
    collate = TeacherCollator(
        own.tokenizer, base_cls=base, packed=packed, stores=[], temperature=1.0, paired=True,
        return_tensors="pt",
    )  # fmt: skip
    features = [dict(each) for each in rows]
    batch = collate([features] if packed else features)
    # transformers keeps packed documents apart by their positions, where there is no mask.
    batch.pop("attention_mask" if packed else "position_ids", None)
    return batch


def surveyed(theirs, own, rows):
    found = Survey(theirs, own)
    for each in rows:
        there, here = each["teacher_input_ids"], each["input_ids"]
        found.add(
            pair_rows(there, each["teacher_labels"], here, each["labels"], theirs, own),
            there, here,
        )  # fmt: skip
    return found


def attached(student, teacher, theirs, own, rows, args):
    survey = surveyed(theirs, own, rows)
    args = CrossTokenizerArgs.model_validate(args)
    source = PairedSignal(
        ModelTeacher(teacher, "T", vocab_size=len(theirs)), "T", SharedVocabulary(len(theirs)),
        Want(unprojected=True), "tail_bucket", 1.0, batched=True, theirs=theirs, own=own,
        in_order=args.method == "uld",
    )  # fmt: skip
    objective = cross_objective(args, ALPHA, theirs, own)
    source.settle(survey)
    objective.settle(survey)
    attach_distill_forward(student, [objective], source)


def sorted_l1(p, q):
    size = max(len(p), len(q))
    p, q = (torch.cat([x.sort(descending=True).values, x.new_zeros(size - len(x))]) for x in (p, q))
    return (p - q).abs().sum()


def spans_of(theirs, own, there, here):
    """[(own tokens, their tokens)] as places in an answer, by the bytes written so far."""
    found, s, t, left, right, done = [], 0, 0, 0, 0, (0, 0)
    while s < len(here) or t < len(there):
        if s < len(here) and (left <= right or t == len(there)):
            left += max(1, len(own.bytes_of[here[s]]))
            s += 1
        else:
            right += max(1, len(theirs.bytes_of[there[t]]))
            t += 1
        if left == right:
            found.append((range(done[0], s), range(done[1], t)))
            done = (s, t)
    return found


def by_formula(student, teacher, theirs, own, rows, args):
    """The mean loss of the tokens that are learnt and predicted, each row by itself."""
    student_ends, kind = {theirs.tokenizer.eos_token_id: own.tokenizer.eos_token_id}, args["method"]
    alike = {i: own.by_bytes[raw] for raw, i in theirs.by_bytes.items() if raw in own.by_bytes}
    alike |= student_ends
    losses = []
    for each in rows:
        q_log, p_log = (
            net(input_ids=torch.tensor([each[name]])).logits[0].log_softmax(-1)
            for net, name in ((student, "input_ids"), (teacher, "teacher_input_ids"))
        )
        s0, t0 = (
            next(i for i, label in enumerate(each[name]) if label != IGNORE)
            for name in ("labels", "teacher_labels")
        )
        here, there = each["input_ids"][s0:], each["teacher_input_ids"][t0:]
        if kind == "uld":
            pairs = [(range(k, k + 1), range(k, k + 1)) for k in range(min(len(here), len(there)))]
        else:
            pairs = spans_of(theirs, own, there, here)
        distance = {}
        for ours, others in pairs:
            if s0 + ours[0] == 0:
                continue
            q, p = q_log[s0 + ours[-1] - 1].exp(), p_log[t0 + others[-1] - 1].exp()
            q_before = sum(q_log[s0 + k - 1, here[k]] for k in ours[:-1])
            p_before = sum(p_log[t0 + k - 1, there[k]] for k in others[:-1])
            if kind == "uld":
                value = sorted_l1(p, q)
            elif kind == "gold":
                q, p = (x * torch.as_tensor(b).exp() for x, b in ((q, q_before), (p, p_before)))
                a, b = args.get("weights") or (
                    len(alike) / len(theirs), 1 - len(alike) / len(theirs)
                )  # fmt: skip
                value = a * sum(p[t] * (p[t] / q[s]).log() for t, s in alike.items())
                rest_q = [i for i in range(len(q)) if i not in alike.values()]
                rest_p = [i for i in range(len(p)) if i not in alike]
                value = value + b * sorted_l1(p[rest_p], q[rest_q])
            else:
                tau = args.get("binarization_temperature", 1.0)
                q_all = (q_before + q_log[s0 + ours[-1] - 1, here[ours[-1]]]) / tau
                p_all = (p_before + p_log[t0 + others[-1] - 1, there[others[-1]]]) / tau
                q, p = q_all.exp(), p_all.exp()
                value = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            distance |= dict.fromkeys(ours, value)
        for k, token in enumerate(here):
            if s0 + k == 0:
                continue
            ce = -q_log[s0 + k - 1, token]
            losses.append((1 - ALPHA) * ce + ALPHA * distance[k] if k in distance else ce)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_is_its_formula(name, packed, monkeypatch):
    """Value and every gradient, in chunks that hold few rows; the student's head is padded."""
    theirs, own = byte_level(*THEIRS), byte_level(*OWN)
    rows = rows_of(theirs, own)
    student, teacher = model(own, 0, pad=3), model(theirs, 1)
    exact, sure = copy.deepcopy(student).double(), copy.deepcopy(teacher).double()
    expected = by_formula(exact, sure, theirs, own, rows, METHODS[name])
    expected.backward()

    monkeypatch.setattr(crossed, "CHUNK_BYTES", 4 * 5 * len(own))
    attached(student, teacher, theirs, own, rows, METHODS[name])
    output = student(**batch_of(own, rows, packed))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=2e-5)
    for (key, seen), (_, wanted) in zip(
        student.named_parameters(), exact.named_parameters(), strict=True
    ):
        error = (seen.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert error < 2e-4, key
    assert set(output.metrics) == {"loss", "ce", METHODS[name]["method"], "paired"}
    paired, count = output.metrics["paired"]
    assert 0 < paired.item() <= count.item()


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_that_teaches_nothing(name):
    """Zero, and a gradient of zeros for everything, which DDP waits for."""
    theirs, own = byte_level(*THEIRS), byte_level(*OWN)
    rows = rows_of(theirs, own)
    silent = dict(rows[0], labels=[IGNORE] * len(rows[0]["labels"]))
    student = model(own, 0)
    attached(student, model(theirs, 1), theirs, own, rows, METHODS[name])
    output = student(**batch_of(own, [silent], packed=False))
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def same(name, teacher_seed, weight=1.0):
    """D of each token, p and q, and the tokens, with one tokenizer on both sides."""
    pieces = byte_level(*THEIRS)
    rows = rows_of(pieces, pieces)[:3]
    objective = cross_objective(CrossTokenizerArgs(**METHODS[name]), 1.0, pieces, pieces)
    objective.settle(surveyed(pieces, pieces, rows))
    ids = rows[0]["teacher_input_ids"]
    with torch.no_grad():
        q, p = (
            model(pieces, seed)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for seed in (0, teacher_seed)
        )
    q, p, tokens = q[:6], p[:6], torch.tensor(ids[1:7])
    each = np.stack([np.arange(6), np.arange(1, 7)], 1)
    pairs = Pairs(each, each, np.zeros(6, bool), tokens)
    return objective.distance(tokens, q, tokens, p, pairs), p, q, tokens


def test_with_one_tokenizer_gold_is_the_kl():
    found, p, q, _ = same("gold", 1)
    assert torch.allclose(found, (p.exp() * (p - q)).sum(-1), rtol=1e-5)


def test_with_one_tokenizer_alm_is_the_binary_kl_of_the_token():
    found, p, q, tokens = same("alm", 1)
    p, q = (x.gather(1, tokens[:, None])[:, 0].double().exp() for x in (p, q))
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_student_that_is_the_teacher_has_nothing_to_learn(name):
    found, *_ = same(name, 0)
    assert found.abs().max() < 1e-6


def trl(**changes):
    from trl.experimental.gold.gold_trainer import ULDLoss

    given = {
        "uld_crossentropy_weight": 0.0, "uld_distillation_weight": 1.0,
        "uld_student_temperature": 1.0, "uld_teacher_temperature": 1.0,
        "uld_skip_student_eos": False, "uld_skip_teacher_eos": False, "use_extended_uld": False,
        "uld_token_merge_strategy": "bayesian", "uld_use_hybrid_loss": False, "beta": 0.0,
        "uld_hybrid_matched_weight": None, "uld_hybrid_unmatched_weight": None, **changes,
    }  # fmt: skip
    return ULDLoss(SimpleNamespace(**given))


def random_case(sizes=(7, 5), vocabularies=(11, 13)):
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(n, v, generator=generator) for n, v in zip(sizes, vocabularies, strict=True)
    ]
    tokens = [
        torch.randint(v, (n,), generator=generator)
        for n, v in zip(sizes, vocabularies, strict=True)
    ]
    return logits, tokens


def test_uld_is_trls():
    """Truncated to the shorter answer, as in the paper; one prompt token before each."""
    logits, tokens = random_case()
    shown = [torch.cat([x, x[:1]])[None] for x in logits]
    labels = [torch.cat([torch.tensor([IGNORE]), x])[None] for x in tokens]
    expected = trl()._compute_distillation_loss(*shown, *labels, *labels)
    count = 5
    each = np.stack([np.arange(count), np.arange(1, count + 1)], 1)
    objective = cross_objective(CrossTokenizerArgs(method="uld"), 1.0, None, None)
    logs = [x.log_softmax(-1) for x in logits]
    found = objective.distance(
        tokens[0], logs[0], tokens[1], logs[1], Pairs(each, each, np.zeros(5, bool), tokens[1])
    )
    assert found.mean().item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, (0.25, 0.5)])
def test_gold_is_trls_with_the_merge_that_is_right(weights):
    """The other merge, TRL's default, gives another number."""
    logits, tokens = random_case()
    alike = np.array([[0, 2, 5, 7], [1, 3, 4, 9]])
    spans = np.array([[0, 1], [1, 4], [4, 5], [5, 7]]), np.array([[0, 2], [2, 3], [3, 4], [4, 5]])
    objective = cross_objective(CrossTokenizerArgs(method="gold"), 1.0, None, None)
    objective.their_ids, objective.own_ids = torch.from_numpy(alike)
    objective.weights = weights or (4 / 13, 9 / 13)
    logs = [x.log_softmax(-1) for x in logits]
    found = objective.distance(
        tokens[0], logs[0], tokens[1], logs[1], Pairs(*spans, np.zeros(4, bool), tokens[1])
    )
    said = {}
    for merge in ("bayesian", "observed"):
        loss = trl(
            uld_token_merge_strategy=merge, uld_use_hybrid_loss=True,
            uld_hybrid_matched_weight=weights and weights[0],
            uld_hybrid_unmatched_weight=weights and weights[1],
        )  # fmt: skip
        loss._vocab_mapping = dict(zip(*alike.tolist(), strict=True))
        loss._teacher_matched_ids, loss._student_matched_ids = map(set, alike.tolist())
        loss.mapping_tensor = torch.full((8,), -1)
        loss.mapping_tensor[alike[0]] = torch.from_numpy(alike[1])
        merged = [
            loss._merge_probabilities_with_alignment_groups(
                x.softmax(-1), [[*range(*span)] for span in side.tolist()], ids.tolist()
            )
            for x, side, ids in zip(logits, spans, tokens, strict=True)
        ]
        said[merge] = loss._compute_hybrid_uld_loss(*merged).item()
    assert found.mean().item() == pytest.approx(said["bayesian"], rel=1e-5)
    assert abs(found.mean().item() - said["observed"]) > 1e-2


def test_alm_is_the_cross_entropy_of_the_paper_without_its_constant():
    """KL = CE(p, q) - CE(p, p), tempered, in float64; near certainty and near impossibility too."""
    p, q = (
        torch.tensor(x).double() for x in ([-0.1, -3.0, -30.0, -2e-5], [-2.0, -0.01, -5.0, -9.0])
    )
    for tau in (1.0, 100.0):

        def ce(a, b, tau=tau):
            a, b = (a / tau).exp(), (b / tau).exp()
            return -(a * b.log() + (1 - a) * (1 - b).log())

        assert torch.allclose(binary_kl(p, q, tau), ce(p, q) - ce(p, p), rtol=1e-3, atol=1e-7)
    certain = torch.zeros(2, requires_grad=True)
    binary_kl(torch.tensor([-1.0, 0.0]), certain, 1.0).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_pieces_are_joined_where_a_word_goes_on():
    theirs, own = byte_level(*THEIRS), byte_level(*OWN)
    args = CrossTokenizerArgs(method="alm", threshold=0.5)
    objective = cross_objective(args, 1.0, theirs, own)
    space, letter, end = theirs.by_bytes[b" "], theirs.by_bytes[b"c"], theirs.tokenizer.eos_token_id
    following = [letter, letter, space, letter, end, letter, letter]
    logits = torch.full((7, len(theirs)), -20.0)
    logits[torch.arange(7), torch.tensor(following)] = 20.0
    each = np.stack([np.arange(7), np.arange(1, 8)], 1)
    ends = np.array([False] * 4 + [True, False, True])
    pairs = Pairs(each + 1, each, ends, torch.tensor(following))
    settled = objective.settled(pairs, DenseLogits(logits))
    # Position k tells what comes as the k-th token, which is what follows span k - 1.
    assert settled.teacher.tolist() == [[0, 2], [2, 4], [4, 5], [5, 7]]
    assert settled.student.tolist() == [[1, 3], [3, 5], [5, 6], [6, 8]]
    assert settled.ends.tolist() == [False, False, True, True]


def test_tokens_are_alike_by_their_bytes_and_roles():
    theirs, own = byte_level(*THEIRS), byte_level(*OWN)
    there, here = alike_tokens(
        theirs, own, {theirs.tokenizer.eos_token_id: own.tokenizer.eos_token_id}
    )
    assert [theirs.bytes_of[i] for i in there] == [own.bytes_of[i] for i in here]
    assert theirs.tokenizer.eos_token_id in there and theirs.by_bytes[b"ab"] not in there
    assert len(there) == 257


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"cross_tokenizer": {"method": "gold"}}, "no store has it"),
        ({"teacher": "t", "divergence": "jsd", "cross_tokenizer": {"method": "uld"}}, "divergence"),
        ({"teacher": "t", "backend": "torch", "cross_tokenizer": {"method": "alm"}}, "`backend`"),
        ({"teacher": "t", "temperature": 2.0, "cross_tokenizer": {"method": "uld"}}, "at T = 1"),
        ({"teacher": "t", "cross_tokenizer": {"method": "gold", "threshold": 0.1}}, "threshold"),
        ({"teacher": "t", "cross_tokenizer": {"method": "alm", "weights": [1, 0]}}, "weights"),
        ({"teacher": "t", "cross_tokenizer": {"method": "uld", "k": 8}}, "method: span"),
        ({"teacher": "t", "cross_tokenizer": {"method": "gold", "weights": [1.0]}}, "two numbers"),
        ({"teacher": "t", "cross_tokenizer": {"method": "alm", "threshold": 2.0}}, "threshold"),
    ],
)
def test_keys_that_nothing_reads_are_refused(block, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill(block)


def test_what_is_taken():
    args = parse_distill({
        "teacher": "t", "alpha": 1.0,
        "cross_tokenizer": {
            "method": "alm", "binarization_temperature": 100.0, "threshold": 0.0001
        },
    })  # fmt: skip
    assert args.cross_tokenizer.binarization_temperature == 100.0
