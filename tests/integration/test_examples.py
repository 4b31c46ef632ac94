"""What the documents show is run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import synthetic
from support.axolotl_run import environment

from axolotl_distill.store import open_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

ROOT = Path(__file__).resolve().parents[2]


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
