"""Faults seen in Axolotl's built-in KD plugin, each as a test of what this project does instead.

The numbers are those of the list the faults were collected in. Absent ones (4, 10, 14) concern
teachers behind servers; 3 is in test_sharded_head.py.
"""

import logging

import bitsandbytes as bnb
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
    matmul,
)
from peft import LoraConfig, get_peft_model
from support.kernel_cases import make_case, oracle, relative_error
from support.stores import capture_rows, random_rows, store_features
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from axolotl_distill.args import parse_distill
from axolotl_distill.data.collator import TeacherCollator
from axolotl_distill.data.store import teacher_positions
from axolotl_distill.data.types import follow_content
from axolotl_distill.errors import ConfigError
from axolotl_distill.plugin import DistillPlugin
from axolotl_distill.store import open_store
from axolotl_distill.train.forward import LossSettings, attach_distill_forward


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_model):
    """A teacher that is not the student, over four rows."""
    rows = random_rows(tiny_model().tokenizer, [30, 12, 41, 7])
    path = tmp_path_factory.mktemp("contracts") / "store"
    return capture_rows(path, lambda: tiny_model(seed=1), rows, k=6)


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


def settings(tokenizer, temperature=2.0, alpha=0.7):
    spec = DistillSpec(temperature=temperature, alpha=alpha, reduction="sum")
    return LossSettings(spec, "torch", len(tokenizer), sampled=False)


def from_own_logits(model, batch, how):
    """The loss from the logits that the untouched model gives: what fusing must reproduce."""
    keys = ("input_ids", "attention_mask")
    logits = model(**{k: batch[k] for k in keys}, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = batch["labels"][:, 1:].flatten()
    teacher = SparseTeacher.from_entries(
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
    for attach in (False, True):
        if attach:
            attach_distill_forward(base, how)
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


def test_01_the_head_is_found_behind_a_wrapper(store, tokenizer, tiny_model):
    torch.distributed.init_process_group("gloo", "tcp://127.0.0.1:0", world_size=1, rank=0)
    try:
        model = tiny_model()
        attach_distill_forward(model, settings(tokenizer))
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(**batch_of(store, tokenizer)).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_02_t_squared_is_in_the_gradient(store, tokenizer, tiny_model, temperature):
    model = tiny_model()
    attach_distill_forward(model, settings(tokenizer, temperature, alpha=1.0))
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
    assert teacher_positions(labels, 50).tolist() == [-1, 50, 51, -1, 52, -1]


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
    assert batch["labels"][0, 0] == -100
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
    assert parse_distill({"divergence": "jsd", "beta": 0.0}).beta == 0.0
    for block, message in (
        ({"divergence": "kl"}, r"distill\.divergence.*forward_kl"),
        ({"beta": 0.1}, "`beta: 0.1` is read by divergence jsd only"),
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


@pytest.mark.parametrize(
    "family, extra",
    [
        ("llama", {}),
        ("gemma2", {"final_logit_softcapping": 10.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
        ("phi", {}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
def test_17_logits_are_made_as_the_model_makes_them(
    store, tokenizer, tiny_model, caplog, family, extra
):
    model = tiny_model(family, **extra).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    with caplog.at_level(logging.WARNING):
        agree(losses_and_gradients(model, model, batch_of(store, tokenizer), settings(tokenizer)))
    assert "own logits" not in caplog.text


def test_17_an_unknown_transform_is_not_fused(store, tokenizer, tiny_model):
    """A model that does what its config does not say is left to its own forward."""
    model = tiny_model().eval()
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.1 + 0.2)
    agree(losses_and_gradients(model, model, batch_of(store, tokenizer), settings(tokenizer)))


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_18_an_adapter_on_the_head_learns(store, tokenizer, tiny_model, caplog, where):
    base = tiny_model()
    adapter = {
        "target_modules": {"target_modules": ["q_proj", "lm_head"]},
        "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }[where]
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **adapter)).eval()
    results = losses_and_gradients(
        model, model.get_base_model(), batch_of(store, tokenizer), settings(tokenizer)
    )
    agree(results)
    of_head = [g for n, g in results[1][1].items() if "lm_head" in n]
    assert of_head and all(g.abs().sum() > 0 for g in of_head)
    assert "own logits" not in caplog.text


def test_18_an_adapter_with_more_than_two_matrices_is_left_to_the_model(
    store, tokenizer, tiny_model, caplog
):
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules=["lm_head"], use_dora=True)
    model = get_peft_model(tiny_model(), adapter).eval()
    batch, how = batch_of(store, tokenizer), settings(tokenizer)
    agree(losses_and_gradients(model, model.get_base_model(), batch, how))
    assert "more than a product of two matrices" in caplog.text


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_19_a_four_bit_head_is_read_as_the_floats_it_stands_for(
    store, tokenizer, tiny_model, caplog, monkeypatch, adapted, nested
):
    monkeypatch.setattr(matmul, "TILE", 5000)
    model = tiny_model()
    vocab, dim = model.lm_head.weight.shape
    head = bnb.nn.Linear4bit(
        dim,
        vocab,
        bias=False,
        quant_type="nf4",
        compress_statistics=nested,
        compute_dtype=torch.float32,
    )
    head.load_state_dict({"weight": model.lm_head.weight.data})
    model.lm_head = head.to("cpu")
    assert model.lm_head.weight.dtype == torch.uint8
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    if adapted:
        adapter = LoraConfig(r=4, init_lora_weights=False, target_modules=["lm_head"])
        model = get_peft_model(model, adapter)
    causal_lm = model.get_base_model() if adapted else model
    causal_lm.model.norm.weight.requires_grad_(True)
    agree(
        losses_and_gradients(model, causal_lm, batch_of(store, tokenizer), settings(tokenizer)),
        tolerance=1e-4,
    )
    assert "own logits" not in caplog.text


def test_20_a_frozen_head_gets_no_gradient_buffer(store, tokenizer, tiny_model, monkeypatch):
    from distill_kernels import sweep

    made = []
    monkeypatch.setattr(sweep, "add_to_weight", lambda *args: made.append(args))
    model = tiny_model()
    model.lm_head.weight.requires_grad_(False)
    attach_distill_forward(model, settings(tokenizer))
    model(**batch_of(store, tokenizer)).loss.backward()
    assert not made and model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad is not None


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
    attach_distill_forward(model, settings(tokenizer))
    batch = batch_of(store, tokenizer)
    expected = model(**batch).loss
    expected.backward()
    gradient = model.model.norm.weight.grad.clone()
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager")
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
    attach_distill_forward(model, how)
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
    cfg = DictDefault({"distill": {"alpha": 0.5}})
    assert DistillPlugin().get_training_args(cfg)["average_tokens_across_devices"] is True
