"""A real vLLM is given an adapter, writes with it, and is found out where it does not.

Installs vLLM into .cache/vllm (3.4 GB) where it is not there yet.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.config.on_policy import OnPolicyArgs, RolloutServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.host.served_rollouts import _empty_adapter, served_base
from axolotl_distill.rollout.adapters import Adapters
from axolotl_distill.rollout.served import ServedWriter
from axolotl_distill.rollout.sync import Sync
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.teachers.itself import evaluating
from axolotl_distill.teachers.temperature import PROSE

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base_dir(tiny_model, tmp_path_factory):
    """Small enough to write soon on two cores; vLLM's attention wants heads of 32 or more."""
    folder = tmp_path_factory.mktemp("models") / "small"
    model = tiny_model(hidden_size=128, head_dim=32, initializer_range=0.1)
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(base_dir):
    spec = importlib.util.spec_from_file_location("demo_vllm", ROOT / "demo" / "serve_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
        arguments = ("--enable-lora", "--max-lora-rank", "16", "--max-loras", "2")
        with module.serve(
            base_dir,
            name="student",
            dtype="float32",
            max_model_len=512,
            arguments=arguments,
            wait_seconds=600.0,
        ) as base_url:
            yield base_url


class Misnamed(Adapters):
    """What a wrapper around the student makes of its names."""

    def keep(self, new, name):
        file = new / "adapter_model.safetensors"
        tensors = {
            n.replace("model.model.", "model.wrapped."): t for n, t in load_file(file).items()
        }
        save_file(tensors, file)
        return super().keep(new, name)


def synced(folder, base_dir, url, kind=Adapters):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.2, target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    text = AutoTokenizer.from_pretrained(base_dir)(PROSE)["input_ids"]
    vllm = VLLM(RolloutServerArgs(base_url=url))
    base, context = served_base(vllm.server, "?")
    assert (base, context) == ("student", 512)
    return Sync(model, vllm, kind(folder), base, text, lambda: evaluating(model), print)


def learn(model, seed, size=0.05):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(size * torch.randn_like(parameter))


def test_it_writes_as_the_student_does(tmp_path, base_dir, url):
    sync = synced(tmp_path, base_dir, url)
    model, eos = sync.model, 2
    args = OnPolicyArgs(max_new_tokens=10, top_k=1)
    own = Writer(model, lambda: evaluating(model), args, (eos,), eos, 512, lambda token: True)
    author = ServedWriter(sync.vllm, args, (eos,), 512, lambda token: True, sync)
    prompts = [sync.text[:40], sync.text[20:37], sync.text[:3]]
    for step in (1, 2, 3):
        found = author.prepare(step)
        print(step, found, sync.bound)
        assert found["sync_gap"] < 1e-3
        assert author.write(prompts, step) == own.write(prompts, step)
        learn(model, step)
    drawn = ServedWriter(
        sync.vllm, OnPolicyArgs(max_new_tokens=10), (eos,), 512, lambda token: True, sync
    )
    drawn.name = author.name
    assert drawn.write(prompts, 5) == drawn.write(prompts, 5) != drawn.write(prompts, 6)
    with pytest.raises(ServerError, match=r"another step|answers as its base"):
        sync.check(author.name, "an adapter of one step before")
    sync.end()


def test_a_reload_under_one_name_is_found_out(tmp_path, base_dir, url):
    """It scores with the new weights, and writes out of the old ones' cache."""
    sync = synced(tmp_path, base_dir, url)
    name, _ = sync(1)
    learn(sync.model, 1, 0.2)
    again = sync.versions.save(sync.model, sync.versions.name("again"))
    # From a new place it would be another adapter to the cache.
    path = shutil.copytree(again, tmp_path / name, dirs_exist_ok=True)
    body = {"lora_name": name, "lora_path": str(path), "load_inplace": True}
    assert sync.vllm._post("load_lora_adapter", body)[0] == 200
    with pytest.raises(ServerError, match="prefix cache") as refused:
        sync.check(name, "an adapter that was loaded again")
    print(refused.value)
    sync.end()


def test_names_it_does_not_know_are_found_out(tmp_path, base_dir, url):
    sync = synced(tmp_path, base_dir, url, Misnamed)
    with pytest.raises(ServerError, match=r"answers as its base|did not take") as refused:
        sync(1)
    print(refused.value)


def test_what_it_does_not_take_is_known_before(tmp_path, base_dir, url):
    vllm = VLLM(RolloutServerArgs(base_url=url, retries=0))
    _empty_adapter(vllm, Adapters(tmp_path), 16, 32)
    with pytest.raises(ServerError, match="--max-lora-rank"):
        _empty_adapter(vllm, Adapters(tmp_path), 17, 32)
    with pytest.raises(ServerError, match="adapters_there"):
        _empty_adapter(vllm, Adapters(tmp_path, "/nowhere"), 16, 32)
    assert not list(tmp_path.iterdir())
