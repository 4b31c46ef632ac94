"""Faults 17 to 20 of test_peer_faults.py: output heads."""

import logging

import bitsandbytes as bnb
import pytest
import torch
from distill_kernels import matmul, sweep
from peft import LoraConfig, get_peft_model
from support.losses import agree, attach, batch_of, losses_and_gradients, settings

pytestmark = pytest.mark.axolotl


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
    made = []
    monkeypatch.setattr(sweep, "add_to_weight", lambda *args: made.append(args))
    model = tiny_model()
    model.lm_head.weight.requires_grad_(False)
    attach(model, settings(tokenizer))
    model(**batch_of(store, tokenizer)).loss.backward()
    assert not made and model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad is not None
