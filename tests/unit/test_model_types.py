"""Loss and every gradient of many model families, held to their own logits in float64."""

import contextlib

import pytest
import torch
from distill_kernels import DistillSpec, distill_loss
from peft import LoraConfig, get_peft_model
from support.losses import Loss, attach, shifted
from support.model_types import VOCAB, tiny
from transformers import MixtralForCausalLM

from axolotl_distill.signal.entries import decode_entries

FUSED = """
afmoe apertus arcee aria_text bamba bert-generation biogpt bitnet bloom codegen cohere cohere2
cohere2_moe ctrl cwm deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe
falcon_mamba flex_olmo fuyu gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoehybrid granitemoeshared
helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jamba jetmoe laguna lfm2 llama mamba
mellum mimo_v2_flash minimax minimax_m2 ministral ministral3 mistral mixtral moshi mpt nanochat
nemotron olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt persimmon phi phi3 phimoe qwen2 qwen2_moe
qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next rwkv seed_oss smollm3 solar_open stablelm
starcoder2 vaultgemma xglm xlm
""".split()  # noqa: SIM905
FALLS_BACK = {
    "llama4_text": "does not name its backbone",
    "opt": "does not run its backbone and its head one after the other",
    "bart": "does not run its backbone and its head one after the other",
    "whisper": "does not run its backbone and its head one after the other",
    "bert": "changes the hidden state between backbone and head",
    "roberta": "changes the hidden state between backbone and head",
    "modernbert-decoder": "changes the hidden state between backbone and head",
    "inkling_text": "changes the hidden state between backbone and head",
    "electra": "does not feed its head the backbone's last hidden state",
    "rembert": "does not feed its head the backbone's last hidden state",
    "recurrent_gemma": "not the scale and soft-cap of its config",
}
FAST = """
llama qwen2 qwen3 mistral mixtral gemma gemma2 gemma3_text cohere granite phi phi3 gpt2 gpt_neox
bloom mpt mamba falcon_mamba jamba olmo2 nemotron stablelm starcoder2 qwen3_moe gpt_oss opt bert
llama4_text modernbert-decoder recurrent_gemma
""".split()  # noqa: SIM905
ROUTED = """
ernie4_5_moe flex_olmo gpt_oss jamba jetmoe laguna mellum minimax minimax_m2 mixtral olmoe phimoe
qwen2_moe qwen3_5_moe_text qwen3_moe qwen3_next
""".split()  # noqa: SIM905
SPEC = {"temperature": 2.0, "alpha": 0.7}


def types(names):
    return [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture
def said(caplog):
    with caplog.at_level("WARNING", logger="axolotl_distill.objectives"):
        yield lambda: [m for m in caplog.messages if m.startswith("axolotl-distill")]


def batch():
    """Two padded rows with a prompt each, and records of every supervised token but one."""
    g = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, VOCAB, (2, 9), generator=g)
    labels, mask = tokens.clone(), torch.ones_like(tokens)
    labels[:, :3] = labels[1, 6:] = -100
    mask[1, 7:] = 0
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:3] for _ in range(18)])
    bits = (ids << 25) | torch.randint(0, 2**22, (18, 3), generator=g)  # 7 bits of id, 25 of value
    entries = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(2, 9, 3)
    entries[0, 5] = -1
    tail = torch.randint(-2000, 2000, (2, 9), generator=g, dtype=torch.int16)
    made = {"input_ids": tokens, "labels": labels, "attention_mask": mask}
    return shifted({**made, "teacher_entries": entries, "teacher_tail": tail})


def from_own_logits(model, request, router_weight):
    b = batch()
    text = {k: b[k] for k in ("input_ids", "attention_mask")}
    out = model(**text, use_cache=False, **request)
    teacher = decode_entries(
        b["teacher_entries"][:, :-1].flatten(0, 1),
        vocab_size=VOCAB,
        sampled=False,
        temperature=2.0,
        tail=b["teacher_tail"][:, :-1].flatten(),
    )
    logits, targets = out.logits[:, :-1].flatten(0, 1).double(), b["labels"][:, 1:].flatten()
    loss = distill_loss(logits, teacher, targets, spec=DistillSpec(**SPEC)).loss
    return loss + router_weight * out.aux_loss if router_weight else loss


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def hold(model, bound=1e-4, context=contextlib.nullcontext, request=None, router_weight=0.0):
    """Loss and gradients of our forward to those of the model's own logits.

    bound  of the loss, relative, and of each gradient, relative to its own norm and a little of
           the whole gradient's, below which a parameter's is rounding
    """
    causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
    with context():
        expected = from_own_logits(model, request or {}, router_weight)
    exact = gradients_of(model, expected)
    how = Loss(DistillSpec(reduction="sum", **SPEC), VOCAB)
    attach(causal_lm, how)
    with context():
        loss = model(**batch()).loss
    seen = gradients_of(model, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=bound)
    whole = torch.stack([g.norm() for g in exact.values()]).norm()
    for name in {*exact, *seen}:
        zero = torch.zeros_like(seen[name] if name in seen else exact[name])
        error = (seen.get(name, zero) - exact.get(name, zero)).norm()
        assert error <= bound * (exact.get(name, zero).norm() + 0.01 * whole), name


@pytest.mark.parametrize("model_type", types(FUSED))
def test_fused(model_type, said):
    hold(tiny(model_type))
    assert said() == []


@pytest.mark.parametrize("model_type", types(FALLS_BACK))
def test_left_to_the_model_with_a_reason(model_type, said):
    hold(tiny(model_type))
    assert len(said()) == 1 and FALLS_BACK[model_type] in said()[0]


@pytest.mark.parametrize("how", ["autocast", "bf16"])
@pytest.mark.parametrize("model_type", types([*FUSED, *FALLS_BACK]))
def test_in_half_precision(model_type, how):
    """bf16 rounds to 2^-9, and the logits that the model rounds, ours are not."""
    model = tiny(model_type)
    if how == "bf16":
        hold(model.bfloat16(), bound=0.15)
    else:
        hold(model, bound=0.15, context=lambda: torch.autocast("cpu", torch.bfloat16))


@pytest.mark.parametrize("model_type", types(ROUTED))
def test_the_routers_loss_is_added(model_type, said):
    model = tiny(model_type)
    model.config.output_router_logits = True
    weight = "aux_loss_coef" if model_type == "jetmoe" else "router_aux_loss_coef"
    setattr(model, weight, 0.5)
    hold(model, request={"output_router_logits": True}, router_weight=0.5)
    assert said() == []


@pytest.mark.parametrize(
    "model_type, why",
    [
        ("afmoe", "it makes none"),
        ("granitemoe", "it makes none"),
        ("llama4_text", "it makes none"),
        ("doge", "raised IndexError"),
    ],
)
def test_a_routers_loss_that_cannot_be_had_is_said(model_type, why, said):
    model = tiny(model_type)
    model.config.output_router_logits = True
    hold(model, request={"output_router_logits": False})
    assert why in said()[0] and "output_router_logits" in said()[0]


class OtherMixtral(MixtralForCausalLM):
    """Balances its experts as no other does."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.aux_loss = None if out.aux_loss is None else out.aux_loss**2
        return out


@pytest.mark.parametrize("module", ["its own", "mixtral's"])
def test_a_routers_loss_of_another_kind_is_left_to_the_model(module, said, monkeypatch):
    if module == "mixtral's":
        monkeypatch.setattr(OtherMixtral, "__module__", MixtralForCausalLM.__module__)
    model = tiny("mixtral")
    model.__class__ = OtherMixtral
    model.config.output_router_logits = True
    model.router_aux_loss_coef = 0.5
    hold(model, request={"output_router_logits": True}, router_weight=0.5)
    reason = "not computed as other models do" if module == "mixtral's" else "AttributeError"
    assert "own logits" in said()[0] and reason in said()[0]


def adapted(**options):
    torch.manual_seed(1)
    adapter = LoraConfig(r=4, init_lora_weights=False, **options)
    return get_peft_model(tiny("llama"), adapter).eval()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("how", ["fp32", "autocast"])
def test_adapters_on_the_head(number, how, said):
    model = adapted(target_modules=["q_proj", "lm_head"])
    if number == 2:
        other = LoraConfig(r=3, init_lora_weights=False, target_modules=["lm_head"])
        model.add_adapter("other", other)
        model.base_model.set_adapter(["default", "other"])
    if how == "fp32":
        hold(model)
    else:
        hold(model, bound=0.15, context=lambda: torch.autocast("cpu", torch.bfloat16))
    assert said() == []


@pytest.mark.parametrize(
    "options, why",
    [
        ({"target_modules": ["lm_head"], "use_dora": True}, "more than a product of two"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, None),
    ],
)
def test_other_adapters_on_the_head(options, why, said):
    hold(adapted(**options))
    assert (why in said()[0]) if why else said() == []


def test_whatever_the_head_raises_is_a_reason_but_not_a_lack_of_memory(said, monkeypatch):
    def broken(*args, **kwargs):
        raise error

    model, error = tiny("llama"), IndexError("no such row")
    monkeypatch.setattr("axolotl_distill.heads.head._logits", broken)
    hold(model)
    assert "IndexError: no such row" in said()[0]
    model, error = tiny("llama"), torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        hold(model)
