"""`axolotl distill temper`: softmax(z) of the copy is softmax(z / T) of the original, or it is
refused."""

import json
import os

import pytest
import torch
from support.cli import distill_here
from support.model_types import VOCAB, tiny
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from axolotl_distill.checkpoint import temper as tempering

FAST = """
llama gemma gemma3_text cohere granite phi gpt2 gpt_neox nemotron opt gemma2 recurrent_gemma
""".split()  # noqa: SIM905
OTHERS = """
afmoe apertus arcee aria_text bamba bert biogpt bitnet bloom codegen cohere2 ctrl cwm deepseek_v4
diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon_mamba flex_olmo fuyu glm glm4
glm4_moe gpt_bigcode gpt_neox_japanese gpt_oss gptj granitemoe granitemoehybrid granitemoeshared
helium hunyuan_v1_dense hy_v3 hyperclovax jais2 jamba jetmoe laguna lfm2 llama4_text mamba mellum
minimax minimax_m2 ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat olmo olmo2
olmo3 olmoe openai-gpt persimmon phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next
qwen3_5_text rwkv seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma xglm
""".split()  # noqa: SIM905
CAPPED = "caps its logits"
REFUSED = {
    **dict.fromkeys(["gemma2", "nanochat", "recurrent_gemma", "vaultgemma"], CAPPED),
    "bert": "its files have nothing for `cls.predictions.decoder.bias`",
    "fuyu": "its files have nothing for `model.language_model.final_layernorm.weight`",
    # Its `logits_scaling` multiplies, where everybody else's divides.
    "hyperclovax": "are not the original's divided by 1.7",
    "olmo": "not given what a last norm with a weight gives",
}


def saved(folder, model_type="llama", dtype=torch.float32, **values):
    """A model with a last norm, and with biases, that are not all ones and zeros."""
    model = tiny(model_type, **values)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder)
    return model


def probabilities(model, temperature=1.0):
    tokens = torch.randint(3, VOCAB, (2, 19), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model.eval()(input_ids=tokens, use_cache=False).logits
    return (logits.double() / temperature).softmax(-1)


def run(folder, out, temperature, *options, check=True):
    return distill_here("temper", folder, out, "--temperature", temperature, *options, check=check)


@pytest.mark.parametrize(
    "model_type", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_the_copy_at_1_is_the_original_at_T(model_type, tmp_path):
    model = saved(tmp_path / "model", model_type)
    done = run(tmp_path / "model", tmp_path / "out", 1.7, check=model_type not in REFUSED)
    if model_type in REFUSED:
        assert (REFUSED[model_type] in done.stderr and "cannot be tempered" in done.stderr) or (
            "caps its logits" in done.stderr
        )
        assert not (tmp_path / "out").exists()
        return
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = probabilities(model, 1.7)
    assert (expected - probabilities(model)).abs().amax() > 1e-3
    torch.testing.assert_close(probabilities(copy), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("temperature", [0.5, 2, 4])
def test_a_power_of_2_is_exact_in_bf16(temperature, tied, tmp_path):
    saved(tmp_path / "model", dtype=torch.bfloat16, tie_word_embeddings=tied)
    done = run(tmp_path / "model", tmp_path / "out", temperature, "--json")
    note = json.loads(done.stdout)
    assert note["error"] == note["error_in_dtype"] == 0 and note["dtype"] == "bfloat16"
    assert note["changed"] == ["model.norm.weight"] and "WARNING" not in done.stderr
    model, copy = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("model", "out")
    )
    assert torch.equal(probabilities(copy), probabilities(model, temperature))


@pytest.mark.parametrize("model_type, temperature", [("llama", 1.7), ("gemma", 2)])
def test_what_bf16_rounds_is_kept_in_fp32_and_said(model_type, temperature, tmp_path):
    """Gemma's (1 + w) / 2 - 1 has more digits than w."""
    saved(tmp_path / "model", model_type, torch.bfloat16)
    done = run(tmp_path / "model", tmp_path / "out", temperature, "--json")
    note = json.loads(done.stdout)
    assert note["error"] < 1e-5 < note["error_in_dtype"] and 0 < note["kl_in_dtype"] < 1e-3
    assert note["changed"] == ["model.norm.weight (in fp32)"]
    assert "Loaded in bfloat16" in done.stderr
    model, exact = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        for name in ("model", "out")
    )
    expected = probabilities(model, temperature)
    torch.testing.assert_close(probabilities(exact), expected, rtol=1e-4, atol=1e-7)
    as_written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert as_written.dtype == torch.bfloat16
    assert (tmp_path / "out" / "README.md").read_text().count("loaded in bfloat16") == 2


@pytest.mark.parametrize("model_type", ["gemma2", "recurrent_gemma"])
def test_a_cap_that_no_key_tells_of_shows_in_the_logits(model_type, tmp_path, monkeypatch):
    monkeypatch.setattr(tempering, "SOFTCAPS", ())
    tiny(model_type).save_pretrained(tmp_path / "model")
    done = run(tmp_path / "model", tmp_path / "out", 2, check=False)
    assert "are not the original's divided by 2" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_logits_of_another_making_are_refused(tmp_path, monkeypatch):
    """Something that no norm divides is added to them."""
    saved(tmp_path / "model")
    before = LlamaForCausalLM.forward

    def forward(self, *args, **kwargs):
        out = before(self, *args, **kwargs)
        out.logits = out.logits + 0.1 * torch.arange(VOCAB) / VOCAB
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    done = run(tmp_path / "model", tmp_path / "out", 2, check=False)
    assert "are not the original's divided by 2" in done.stderr


@pytest.mark.parametrize("link", [True, False])
def test_shards_that_stay_are_copied_or_linked(link, tmp_path):
    model = tiny("llama", layers=3)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    run(tmp_path / "model", tmp_path / "out", 2, *(["--link"] if link else []))
    names = {path.name for path in (tmp_path / "model").iterdir()}
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == names | {"temper.json", "README.md"}
    shards = [name for name in names if name.endswith(".safetensors")]
    before, after = tmp_path / "model", tmp_path / "out"
    same = [name for name in shards if os.path.samefile(before / name, after / name)]
    assert len(same) == (len(shards) - 1 if link else 0) and len(shards) > 3
    assert not os.path.samefile(before / "tokenizer.json", after / "tokenizer.json")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(probabilities(copy), probabilities(model, 2.0))


def test_what_is_refused(tmp_path):
    saved(tmp_path / "model")
    for wrong in (0, -1, 1, "nan", "inf"):
        said = run(tmp_path / "model", tmp_path / "out", wrong, check=False).stderr
        assert "a number above 0, and 1 is the model as it is" in said
    assert "is there already" in run(tmp_path / "model", tmp_path / "model", 2, check=False).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
