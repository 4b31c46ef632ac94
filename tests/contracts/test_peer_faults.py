"""Faults seen in Axolotl's built-in KD plugin, each as a test of what this project does instead.

The numbers are those of the list the faults were collected in. 4, 10 and 14 concern teachers
behind servers (test_server_teacher.py, test_server_capture.py); 3 is in test_sharded_head.py, 17 to
20 are in test_peer_faults_heads.py.
"""

from typing import get_args

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data.shared import generate_dataset_hash_from_config
from axolotl.utils.dict import DictDefault
from distill_kernels import (
    DistillSpec,
    SparseTeacher,
    distill_loss,
    fused_linear_distill,
    spec,
)
from support.forks import apart
from support.kernel_cases import make_case, oracle, relative_error
from support.losses import agree, attach, batch_of, from_own_logits, losses_and_gradients, settings
from support.stores import capture_rows, random_rows, store_features
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from axolotl_distill.config import distill
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.datasets.types import follow_content
from axolotl_distill.host.plugin import DistillPlugin
from axolotl_distill.signal.batch import pointers
from axolotl_distill.store import open_store

pytestmark = pytest.mark.axolotl


def test_01_the_head_is_found_behind_a_wrapper(store, tokenizer, tiny_model):
    def check():
        torch.distributed.init_process_group("gloo", "tcp://127.0.0.1:0", world_size=1, rank=0)
        model = tiny_model()
        attach(model, settings(tokenizer))
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(**batch_of(store, tokenizer)).loss.backward()
        assert all(p.grad is not None for p in model.parameters())

    apart(check)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_02_t_squared_is_in_the_gradient(store, tokenizer, tiny_model, temperature):
    model = tiny_model()
    attach(model, settings(tokenizer, temperature, alpha=1.0))
    batch = batch_of(store, tokenizer, temperature)
    weight = model.model.norm.weight
    model(**batch).loss.backward()
    direction = weight.grad / weight.grad.norm()

    def value(step):
        with torch.no_grad():
            weight.add_(step * direction)
            loss = model(**batch).loss.double().item()
            weight.sub_(step * direction)
        return loss

    slope = (value(1e-2) - value(-1e-2)) / 2e-2
    assert slope == pytest.approx(weight.grad.norm().item(), rel=1e-2)


def test_05_a_record_sits_where_it_predicts():
    labels = np.array([-100, -100, 7, 8, -100, 9])
    assert pointers(labels, 50).tolist() == [-1, 50, 51, -1, 52, -1]


def test_06_too_long_rows_keep_the_records_of_what_is_left(store, tokenizer):
    whole = batch_of(store, tokenizer)["teacher_entries"]
    features = store_features(tokenizer, store)
    for feature in features:
        for column in ("input_ids", "labels", "attention_mask"):
            feature[column] = feature[column][:20]
    collate = TeacherCollator(
        tokenizer,
        base_cls=DataCollatorForSeq2Seq,
        packed=False,
        stores=[open_store(store)],
        temperature=2.0,
        return_tensors="pt",
    )
    cut = collate(features)["teacher_entries"]
    assert torch.equal(cut[:, :19], whole[:, :19])
    assert (cut[[0, 2], 19] == -1).all()


def test_07_the_first_token_has_no_record(store, tokenizer, tiny_model, tmp_path):
    """Every token supervised, the first too: nothing predicts it and nothing breaks."""
    rows = random_rows(tokenizer, [9])
    rows[0]["labels"] = list(rows[0]["input_ids"])
    path = capture_rows(tmp_path / "s", tiny_model, rows, k=4)
    assert open_store(path).num_records == 8
    batch = batch_of(path, tokenizer)
    assert batch["shift_labels"].tolist() == [[*rows[0]["labels"][1:], -100]]
    assert (batch["teacher_entries"][0, :8, 0] != -1).all()


def test_08_and_09_short_records_shorten_no_other(tokenizer, tiny_model):
    """Records of 1, 3 and 20 entries in one batch: each keeps its own, all losses are finite."""
    ids = torch.full((3, 20), -1)
    logprobs = torch.full((3, 20), -torch.inf)
    exact = torch.randn(3, 100).double().mul(3).log_softmax(-1)
    tails = []
    for row, size in enumerate((1, 3, 20)):
        top = exact[row].topk(size)
        ids[row, :size], logprobs[row, :size] = top.indices, top.values.float()
        tails.append(torch.log1p(-top.values.exp().sum()))
    teacher = SparseTeacher(ids, logprobs, torch.stack(tails).float())
    hidden, weight = torch.randn(3, 8), torch.randn(100, 8)
    labels = torch.zeros(3, dtype=torch.int64)
    together = fused_linear_distill(
        hidden, weight, teacher, labels, spec=DistillSpec(reduction="sum")
    )
    alone = sum(
        fused_linear_distill(
            hidden[[row]], weight, teacher[[row]], labels[[row]], spec=DistillSpec(reduction="sum")
        ).kd
        for row in range(3)
    )
    assert torch.isfinite(together.loss)
    assert together.kd.item() == pytest.approx(alone.item(), rel=1e-5)


def test_11_padding_entries_count_for_nothing():
    case = make_case(seed=3)
    wide = SparseTeacher(
        torch.nn.functional.pad(case.teacher.ids, (0, 30), value=-1),
        torch.nn.functional.pad(case.teacher.logprobs, (0, 30), value=-torch.inf),
        case.teacher.tail_logprob,
    )
    losses = [
        fused_linear_distill(
            case.hidden, case.weight, teacher, case.labels, spec=DistillSpec()
        ).loss.item()
        for teacher in (case.teacher, wide)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("support", ["tail_bucket", "renormalize"])
def test_12_both_sides_are_distributions_over_the_same_bins(support):
    """A student that is the teacher has divergence 0 and gradient 0, at any K."""
    logits = (torch.randn(5, 200, dtype=torch.float64) * 3).requires_grad_()
    top = logits.detach().log_softmax(-1).topk(9)
    rest = logits.detach().log_softmax(-1).scatter(1, top.indices, -torch.inf).logsumexp(-1)
    teacher = SparseTeacher(top.indices, top.values, rest)
    out = distill_loss(
        logits, teacher, torch.zeros(5, dtype=torch.int64), spec=DistillSpec(support=support)
    )
    out.loss.backward()
    assert abs(out.loss.item()) < 1e-12
    assert logits.grad.abs().max().item() < 1e-12


def test_13_only_divergences_with_a_definition_are_accepted():
    """That the jsd is continuous at its ends is held by tests/kernels/test_divergences.py."""
    assert get_args(distill.Divergence) == get_args(spec.Divergence)
    assert parse_distill({"divergence": "jsd", "beta": 0.0}).beta == 0.0
    for block, message in (
        ({"divergence": "kl"}, r"distill\.divergence.*forward_kl"),
        ({"beta": 0.1}, "`beta: 0.1` is read by `divergence: jsd` only"),
        ({"divergence": "tvd", "support": "sampled"}, "tvd.*not defined.*sampled"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_distill(block)


@pytest.mark.parametrize("side", ["left", "right"])
def test_15_and_16_unpacked_batches_carry_the_teacher(store, tokenizer, side):
    """On either padding side, each supervised token has its record and no other token has."""
    batch = batch_of(store, tokenizer, side=side)
    supervised = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:] != -100
    assert torch.equal(batch["teacher_entries"][..., 0] != -1, supervised)


def test_21_bf16_loses_no_more_than_bf16_must():
    case = make_case(rows=128, dim=64, vocab=2000, k=32, seed=1)
    case.hidden, case.weight = case.hidden.bfloat16(), case.weight.bfloat16()
    loss, (_, exact, _) = oracle(case, DistillSpec())
    hidden, weight, _ = case.leaves(torch.bfloat16)
    out = fused_linear_distill(hidden, weight, case.teacher, case.labels, spec=DistillSpec())
    out.loss.backward()
    assert relative_error(out.loss.detach(), loss) < 1e-5
    assert relative_error(weight.grad, exact) < 2 * relative_error(exact.bfloat16(), exact)


def test_22_the_model_compiles_around_the_loss(store, tokenizer, tiny_model):
    model = tiny_model()
    attach(model, settings(tokenizer))
    batch = batch_of(store, tokenizer)
    expected = model(**batch).loss
    expected.backward()
    gradient = model.model.norm.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert relative_error(model.model.norm.weight.grad, gradient) < 1e-4


def test_23_the_routers_loss_is_kept(store, tokenizer, tiny_model):
    model = tiny_model(
        "mixtral", num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.5
    ).eval()
    batch = batch_of(store, tokenizer)
    how = settings(tokenizer)
    without = from_own_logits(model, batch, how)
    own = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    attach(model, how)
    loss = model(**batch).loss
    assert loss.item() == pytest.approx((without + 0.5 * own.aux_loss).item(), rel=1e-4)
    loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in model.named_parameters()
        if "gate.weight" in n
    )


def test_24_models_without_logits_to_keep(store, tokenizer, tiny_model):
    """As models that bring their own code often are."""

    class OlderLlama(LlamaForCausalLM):
        def forward(self, input_ids, attention_mask=None, use_cache=None):
            hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache)
            return CausalLMOutputWithPast(logits=self.lm_head(hidden[0]))

    model = tiny_model()
    model.__class__ = OlderLlama
    agree(losses_and_gradients(model, model, batch_of(store, tokenizer), settings(tokenizer)))


def test_25_what_is_optional_may_be_left_out():
    assert parse_distill({}).alpha == 0.7
    assert parse_distill({"support": None, "capture": None}).support is None
    with pytest.raises(ConfigError, match=r"`distill\.alpha`.*got None"):
        parse_distill({"alpha": None})


def test_26_the_cache_key_follows_the_store(tmp_path, tiny_model, tokenizer):
    rows = random_rows(tokenizer, [12])
    keys = []
    for seed in (0, 1):
        path = tmp_path / "store"
        if path.exists():
            path.rename(tmp_path / "old")
        capture_rows(path, lambda seed=seed: tiny_model(seed=seed), rows, k=4)
        entry = DictDefault({"path": str(path), "type": "axolotl_distill.store"})
        follow_content([entry])
        cfg = DictDefault({"sequence_len": 64})
        keys.append(generate_dataset_hash_from_config(cfg, [entry], "tokenizer"))
    assert keys[0] != keys[1]


def test_26_tokens_are_averaged_across_devices():
    cfg = DictDefault({"distill": {"teacher": "text"}})
    assert DistillPlugin().get_training_args(cfg)["average_tokens_across_devices"] is True
