"""A real vLLM is given all of a student's weights while it runs, and is found out where it has not
read them.

Installs vLLM into .cache/vllm (3.4 GB) where it is not there yet.
"""

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.axolotl_run import run_axolotl
from support.sums import write_sums
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.config.on_policy import OnPolicyArgs, RolloutServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.rollout.checkpoints import Checkpoints
from axolotl_distill.rollout.full_sync import FullSync
from axolotl_distill.rollout.served import ServedWriter
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.teachers.itself import evaluating
from axolotl_distill.teachers.temperature import PROSE

ROOT = Path(__file__).resolve().parents[2]
EOS, CONTEXT = 2, 512
pytestmark = pytest.mark.slow


def small(folder, tiny_model, **changes):
    """vLLM's attention wants heads of 32 or more."""
    model = tiny_model(hidden_size=128, head_dim=32, initializer_range=0.1, **changes)
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def in_development_mode(base_dir):
    spec = importlib.util.spec_from_file_location("demo_vllm", ROOT / "demo" / "serve_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        about = {"name": "student", "dtype": "float32", "max_model_len": CONTEXT}
        with module.serve(base_dir, wait_seconds=600.0, **about) as base_url:
            yield base_url


@pytest.fixture(scope="module")
def base_dir(tiny_model, tmp_path_factory):
    return small(tmp_path_factory.mktemp("models") / "small", tiny_model)


@pytest.fixture(scope="module")
def url(base_dir):
    with in_development_mode(base_dir) as base_url:
        yield base_url


def synced(folder, base_dir, url, kind=Checkpoints):
    model = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32).train()
    text = AutoTokenizer.from_pretrained(base_dir)(PROSE)["input_ids"]
    vllm = VLLM(RolloutServerArgs(base_url=url, retries=0))
    return FullSync(model, vllm, kind(folder), "student", text, lambda: evaluating(model), print)


def learn(model, seed, size=0.02):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


@pytest.mark.axolotl
def test_a_full_fine_tune_writes_with_vllm(tmp_path, base_dir, url, tiny_llama_dir):
    write_sums(tmp_path / "chats.jsonl")
    on_policy = {"lmbda": 1.0, "max_new_tokens": 8, "server": {"base_url": url}}
    config = {
        "base_model": str(base_dir),
        "distill": {
            "teacher": str(tiny_llama_dir),
            "divergence": "reverse_kl",
            "on_policy": on_policy,
        },
        "datasets": [{"path": str(tmp_path / "chats.jsonl"), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-3,
        "plugins": ["axolotl_distill", "support.run_spy.RunSpy"],
        "max_steps": 2,
    }
    run = run_axolotl(tmp_path, config)
    gaps = run.column("rollout/sync_gap")
    print([line for line in run.log.splitlines() if "trial ones" in line], gaps)
    assert len(gaps) == 2 and max(gaps) < 1e-4
    assert all(1 <= length <= 8 for length in run.column("rollout/length"))
    assert not list((run.output / "rollout-weights").iterdir())


def test_it_writes_as_the_student_does(tmp_path, base_dir, url):
    sync = synced(tmp_path, base_dir, url)
    model = sync.model
    args = OnPolicyArgs(max_new_tokens=10, top_k=1)
    own = Writer(model, lambda: evaluating(model), args, (EOS,), EOS, CONTEXT, lambda token: True)
    author = ServedWriter(sync.vllm, args, (EOS,), CONTEXT, lambda token: True, sync)
    prompts = [sync.text[:40], sync.text[20:37], sync.text[:3]]
    for step in (1, 2, 3):
        found = author.prepare(step)
        print(step, found, sync.bound)
        assert found["sync_gap"] < 1e-4
        assert author.write(prompts, step) == own.write(prompts, step)
        learn(model, step)
    with pytest.raises(ServerError, match="still has other weights"):
        sync.check("the weights of one step before")
    # What was cached with the weights before is not used: the reload alone would leave it there.
    sync.vllm.forget, forget = lambda: None, sync.vllm.forget
    with pytest.raises(ServerError, match="prefix cache"):
        sync(4)
    sync.vllm.forget = forget
    assert sync(4)[1]["sync_gap"] < 1e-4


class Unmoved(Checkpoints):
    """The server is pointed to the weights that it began with, and says that it has read them."""

    base: Path

    def keep(self, new, name):
        super().keep(new, name)
        return str(self.base)


def test_a_reload_that_changes_nothing_is_found_out(tmp_path, base_dir, url):
    kind = type("At", (Unmoved,), {"base": base_dir})
    with pytest.raises(ServerError, match=r"trial weights.*still has other weights") as refused:
        synced(tmp_path, base_dir, url, kind)(1)
    print(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_tied_head_that_stays_is_found_out(tmp_path, tiny_model):
    """vLLM's CPU build computes with a packed copy of the head, made when it was loaded."""
    base = small(tmp_path / "tied", tiny_model, tie_word_embeddings=True)
    with (
        in_development_mode(base) as base_url,
        pytest.raises(ServerError, match=r"trial weights.*untie") as refused,
    ):
        synced(tmp_path / "weights", base, base_url)(1)
    print(refused.value)
