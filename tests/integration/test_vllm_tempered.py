"""A real vLLM serves what `axolotl distill temper` wrote: it answers as the teacher at that
temperature.

Installs vLLM into .cache/vllm (3.4 GB) where it is not there yet.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cli import distill_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.config.on_policy import RolloutServerArgs
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.teachers.temperature import PROSE

ROOT = Path(__file__).resolve().parents[2]
T = 2.0
# fp32 on both sides: what is left is the order of sums.
TEXT_BOUND = 0.0005

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tempered(tmp_path_factory, smollm2_dir):
    out = tmp_path_factory.mktemp("tempered") / "teacher"
    distill_here("temper", smollm2_dir, out, "--temperature", T)
    return out


@pytest.fixture(scope="module")
def url(tempered):
    spec = importlib.util.spec_from_file_location("demo_vllm", ROOT / "demo" / "serve_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_environment()
    about = {"dtype": "float32", "max_model_len": 512, "wait_seconds": 600.0}
    with module.serve(tempered, **about) as base_url:
        yield base_url


def test_it_answers_as_the_original_at_that_temperature(url, smollm2_dir):
    ids = AutoTokenizer.from_pretrained(smollm2_dir)(PROSE, add_special_tokens=False)["input_ids"]
    vllm = VLLM(RolloutServerArgs(base_url=url, retries=1))
    seen = vllm.run(vllm.score("teacher", ids))
    vllm.close()
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    at = torch.arange(len(ids) - 1), torch.tensor(ids[1:])
    expected, plain = (
        (logits / temperature).log_softmax(-1)[at].numpy() for temperature in (T, 1.0)
    )
    apart = np.abs(seen - expected)
    print(
        f"\n{len(ids) - 1} tokens: off by {apart.mean():.6f} nats, at most {apart.max():.6f}; the "
        f"original at T = 1 is {np.abs(seen - plain).mean():.3f} away"
    )
    assert apart.max() < TEXT_BOUND
    assert np.abs(seen - plain).mean() > 0.5
