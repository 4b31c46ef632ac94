"""A local teacher that is spread, quantised or adapted gives the logits that it should."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.fingerprint import identity, weights_of
from axolotl_distill.teachers.hf import HFTeacher
from axolotl_distill.teachers.load import input_device, load_causal_lm

ROW, WANTED = list(range(20, 60)), torch.tensor([0, 3, 38])
ON_DISK = {
    "model.embed_tokens": "disk",
    "model.layers": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def logits_of(model):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ROW])).logits[0][WANTED].float()


def asked(tokenizer, **keys):
    teacher = HFTeacher(TeacherArgs(dtype="float32", **keys), vocab_size=len(tokenizer))
    ((_, _, signal),) = teacher.grade({0: ROW}, {0: WANTED.numpy()}, Want())
    return teacher.model, signal.distribution.logits


@pytest.fixture
def adapter(tmp_path, tiny_llama_dir):
    """(folder of a LoRA adapter, the model with it, merged)"""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(base, lora).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", tuned.merge_and_unload()


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_map_of_devices(smollm2_dir, tokenizer, device_map):
    model, logits = asked(tokenizer, model=str(smollm2_dir), device_map=device_map)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32))
    torch.testing.assert_close(logits, expected[:, : len(tokenizer)], rtol=1e-4, atol=1e-3)
    assert input_device(model) == logits.device == torch.device("cpu")


def test_parts_that_wait_elsewhere(tiny_llama_dir, tokenizer):
    """The model says that it is on no device at all; ids and logits are where it runs."""
    model, logits = asked(tokenizer, model=str(tiny_llama_dir), device_map=ON_DISK)
    assert model.device.type == "meta" and input_device(model).type == logits.device.type == "cpu"
    expected = logits_of(AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32))
    torch.testing.assert_close(logits, expected[:, : len(tokenizer)], rtol=1e-4, atol=1e-3)


def test_a_map_that_leaves_parts_out(tiny_llama_dir, tokenizer):
    with pytest.raises(CaptureError, match=r"cannot be loaded.*any device.*embed_tokens"):
        partly = {"model.layers": "cpu", "lm_head": "disk"}
        asked(tokenizer, model=str(tiny_llama_dir), device_map=partly)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_weights_are_rounded_as_bitsandbytes_rounds_them(tiny_llama_dir, tokenizer, bits):
    """Held to a plain model that has the rounded weights: nf4 in blocks of 64, int8 by rows."""
    from bitsandbytes import functional

    model, logits = asked(tokenizer, model=str(tiny_llama_dir), quantization=bits)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    exact = logits_of(plain)
    for name, module in plain.model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight = module.weight.data
        if bits == "4bit":
            rounded = functional.dequantize_4bit(
                *functional.quantize_4bit(weight, quant_type="nf4")
            )
        else:
            scale = weight.abs().amax(1, keepdim=True) / 127
            rounded = (weight / scale).round() * scale
        assert model.model.get_submodule(name).weight.dtype in (torch.uint8, torch.int8)
        module.weight.data = rounded.to(weight.dtype)
    expected = logits_of(plain)
    error = (logits - expected[:, : len(tokenizer)]).abs().max()
    # 8bit rounds what is multiplied as well, row by row; 4bit where the CPU multiplies in bf16.
    as_it_is = bits == "4bit" and not functional.has_avx512bf16()
    allowed = 1e-3 if as_it_is else 0.5 * (expected - exact).abs().max() + 0.05 * exact.std()
    assert error < allowed, (error, allowed)
    assert (expected - exact).abs().max() > 1e-2


def test_an_adapter_is_merged(tiny_llama_dir, tokenizer, adapter):
    folder, merged = adapter
    _, logits = asked(tokenizer, model=str(tiny_llama_dir), adapter=str(folder))
    torch.testing.assert_close(logits, logits_of(merged)[:, : len(tokenizer)], rtol=1e-4, atol=1e-3)
    _, without = asked(tokenizer, model=str(tiny_llama_dir))
    assert (logits - without).abs().max() > 0.1


def test_an_adapter_beside_quantised_weights(tiny_llama_dir, tokenizer, adapter):
    """Its own weights are not rounded: the difference it makes is the one it was trained to."""
    folder, _ = adapter
    model, logits = asked(
        tokenizer, model=str(tiny_llama_dir), adapter=str(folder), quantization="4bit"
    )
    base = load_causal_lm(
        TeacherArgs(model=str(tiny_llama_dir), dtype="float32", quantization="4bit")
    )
    expected = logits_of(_with_lora(base, folder))[:, : len(tokenizer)]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    assert any("lora_" in name for name, _ in model.named_parameters())


def _with_lora(model, folder):
    """The adapter's formula, W x + (alpha / r) B A x, written out."""
    from safetensors.torch import load_file

    settings = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    scale = settings["lora_alpha"] / settings["r"]
    for key, down in weights.items():
        if ".lora_A." not in key:
            continue
        up = weights[key.replace(".lora_A.", ".lora_B.")]
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, out, a=down, b=up: out + scale * (inputs[0] @ a.T @ b.T)
        )
    return model


def test_an_adapter_that_is_in_no_weight(tmp_path, tiny_llama_dir, tokenizer):
    from peft import PromptTuningConfig

    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    tuned = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    tuned.save_pretrained(tmp_path)
    with pytest.raises(CaptureError, match="PROMPT_TUNING adapter, which stands before the text"):
        asked(tokenizer, model=str(tiny_llama_dir), adapter=str(tmp_path))


def test_who_a_teacher_is(tiny_llama_dir, adapter):
    folder, _ = adapter
    plain = TeacherArgs(model=str(tiny_llama_dir))
    others = [
        TeacherArgs(model=str(tiny_llama_dir), adapter=str(folder)),
        TeacherArgs(model=str(tiny_llama_dir), quantization="4bit"),
        TeacherArgs(model=str(tiny_llama_dir), quantization="8bit"),
        TeacherArgs(model=str(tiny_llama_dir), dtype="float32"),
    ]
    seen = [identity(teacher) for teacher in [plain, *others]]
    assert all(one not in seen[:at] for at, one in enumerate(seen))
    assert seen[0] == {
        "name": str(tiny_llama_dir), "dtype": "auto", "weights": weights_of(str(tiny_llama_dir)),
    }  # fmt: skip
    assert identity(plain.model_copy(update={"device_map": "auto"})) == seen[0]
    before = copy.deepcopy(seen[1])
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after = identity(others[0])
    assert after["weights"] != before["weights"] and after["adapter"] == before["adapter"]


def test_the_revision_is_part_of_who_it_is(tmp_path, monkeypatch):
    """From the hub's cache, as it lies on the disk."""
    from huggingface_hub import constants

    commits = {"main": "a" * 40, "v2": "b" * 40}
    repo = tmp_path / "models--org--teacher"
    (repo / "refs").mkdir(parents=True)
    for name, commit in commits.items():
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text("{}")
        (repo / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert identity(TeacherArgs(model="org/teacher"))["weights"] == f"hub:{commits['main']}"
    second = identity(TeacherArgs(model="org/teacher", revision="v2"))
    assert second["weights"] == f"hub:{commits['v2']}"
