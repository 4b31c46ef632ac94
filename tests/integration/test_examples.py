"""What the documents show is run."""

import json
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml
from axolotl.cli.config import prepare_plugins
from axolotl.integrations.base import PluginManager
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
from support import synthetic
from support.axolotl_run import environment
from support.crossed import mistral_student

from axolotl_distill.store import open_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

pytestmark = pytest.mark.axolotl

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_configs"


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("kind", ["topk", "nucleus"])
def test_the_format_can_be_read_without_this_package(tmp_path, kind):
    store = open_store(synthetic.write_store(tmp_path / "store", kind))
    (code,) = blocks(ROOT / "docs" / "store-format.md")
    assert "axolotl_distill" not in code
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    record = store.read(np.array([0]))
    ids, logprobs = decode_logprobs(record.entries[0], synthetic.VOCAB)
    held = ids >= 0
    assert seen["ids"] == ids[held].tolist()
    assert seen["logprobs"] == pytest.approx(logprobs[held].tolist(), abs=1e-5)
    assert seen["tail"] == pytest.approx(float(np.exp(decode_tail(record.tail[0, 0]))), rel=1e-6)


def test_the_kernels_alone(capsys):
    (code,) = blocks(ROOT / "triton_kernels" / "README.md")
    names: dict = {}
    exec(code, names)
    loss, kl = map(float, capsys.readouterr().out.split())
    assert loss > kl > 0
    assert names["hidden"].grad.abs().sum() > 0 and names["weight"].grad.abs().sum() > 0


@pytest.mark.slow
def test_the_qlora_example_on_a_cpu(student_dir, smollm2_dir):
    """The twin of the 7B example, as its header says, with the real model in four bits."""
    config = "example_configs/smollm2-qlora-cpu.yml"
    env = {**environment(), "OMP_NUM_THREADS": "2"}
    for command in (
        ["axolotl.cli.main", "distill", "capture", config, "--limit", "12"],
        [
            *("accelerate.commands.launch", "--cpu", "--num_processes", "1"),
            *("-m", "axolotl.cli.train", config),
        ],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.count("distill/kl") == 3
    assert (ROOT / "outputs/smollm2-qlora-cpu/student/adapter_model.safetensors").exists()


def trained(example: str) -> subprocess.CompletedProcess[str]:
    """What training on an example says, by the command of its header."""
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    config = f"example_configs/{example}.yml"
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "axolotl.cli.train", config],
        cwd=ROOT,
        env={**environment(), "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done


@pytest.mark.slow
def test_the_on_policy_example_on_a_cpu(student_dir, smollm2_dir):
    """A real student of 25 layers writes, and the model it was cut out of grades."""
    done = trained("on-policy-cpu")
    assert done.stdout.count("distill/kl") + done.stdout.count("distill/kd") == 4
    assert "rollout/length" in done.stdout
    assert (ROOT / "outputs/on-policy-cpu/student/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_the_live_cross_tokenizer_example_on_a_cpu(smollm2_dir):
    """Any small model of another family will do, and where there is none, a random one."""
    student = ROOT / ".cache/other-student"
    if not student.exists():
        mistral_student(student)
    done = trained("cross-tokenizer-live-cpu")
    assert done.stdout.count("distill/gold") == 4 and "its own tokenizer" in done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yml")), ids=lambda path: path.stem)
def test_axolotl_takes_every_example(monkeypatch, path):
    """As on 8 GPUs: what `axolotl train` checks before it loads anything."""
    cfg = yaml.safe_load(path.read_text())
    if "base_model" not in cfg:
        pytest.skip("a recipe of `axolotl distill filter`")
    monkeypatch.setattr(PluginManager.get_instance(), "plugins", OrderedDict())
    cfg = DictDefault({**cfg, "axolotl_config_path": str(path)})
    prepare_plugins(cfg)
    gpus = {"bf16": True, "fp8": False, "n_gpu": 8, "n_node": 1, "compute_capability": "sm_90"}
    validate_config(cfg, capabilities=gpus, env_capabilities={"torch_version": "2.8.0"})
