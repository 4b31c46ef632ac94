"""Shared fixtures: the real SmolLM2, its real tokenizer, and tiny models that speak it.

transformers is imported where it is used, for the kernels' tests need nothing but torch.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
if not Path("/dev/nvidia0").exists():
    # Without a GPU the tests run the same kernels in Triton's interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

# A landing must not depend on a draw: every run tries the same examples. To hunt for new ones:
# HYPOTHESIS_PROFILE=default
settings.register_profile("pinned", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pinned"))

ROOT = Path(__file__).resolve().parent.parent


def pytest_sessionstart():
    """The chats that many tests capture, where `make models` has not made them."""
    if not (ROOT / ".cache" / "pydoc-chat" / "heldout.jsonl").exists():
        subprocess.run([sys.executable, "-W", "ignore", "demo/make_data.py"], cwd=ROOT, check=True)


def _demo_models():
    spec = importlib.util.spec_from_file_location("demo_models", ROOT / "demo" / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct."""
    return _demo_models().prepare_teacher()


@pytest.fixture(scope="session")
def student_dir(smollm2_dir: Path) -> Path:
    """SmolLM2 without 5 of its 30 layers."""
    return _demo_models().cut_layers()


@pytest.fixture
def tokenizer(smollm2_dir: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_dir)


@pytest.fixture(scope="session")
def tiny_model(smollm2_dir: Path):
    """Make a tiny random model of a family, with SmolLM2's vocabulary, always the same one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    def make(model_type: str = "llama", seed: int = 0, **overrides):
        tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
        values = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        config = AutoConfig.for_model(model_type, **{**values, **overrides})
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # At their initial scale, random models are all but uniform and any two agree.
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(40.0)
        model.tokenizer = tokenizer
        return model

    return make


@pytest.fixture(scope="session")
def tiny_llama_dir(tiny_model, tmp_path_factory) -> Path:
    """A tiny Llama on disk, as a user's base_model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model = tiny_model()
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
