"""Fault 3 of test_peer_faults.py: a head that FSDP2 or ZeRO-3 shards."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from support.kernel_cases import relative_error
from support.sharded import adapted, attach, batch, student
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

pytestmark = pytest.mark.axolotl

ROOT = Path(__file__).resolve().parents[2]


UNITS = {
    "the model": lambda model: [],
    "the head": lambda model: [model.lm_head],
    "the adapter": lambda model: [model.lm_head.lora_A.default, model.lm_head.lora_B.default],
    "the adapter and what it adapts": lambda model: [
        model.lm_head.lora_A.default,
        model.lm_head.lora_B.default,
        model.lm_head.base_layer,
    ],
    "the adapted head": lambda model: [model.lm_head],
}
"""What FSDP2 gathers by itself within the model's unit; "the adapter" is what Axolotl makes."""


def causal_lm(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def process(rank: int, meeting: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("axolotl_distill.objectives").addHandler(listener)
    for units in UNITS:
        check_gradients(rank, units, MixedPrecisionPolicy())
        assert not said, f"{units}: {said}"
    for units in ("the model", "the head"):
        check_gradients(rank, units, MixedPrecisionPolicy(output_dtype=torch.bfloat16))
    torch.distributed.destroy_process_group()


def check_gradients(rank: int, units: str, policy: MixedPrecisionPolicy) -> None:
    """The whole model's. What is returned in bf16 costs neither them nor the sums that are logged
    their digits."""
    whole, model = (adapted() if "adapt" in units else student() for _ in range(2))
    for each in (whole, model):
        attach(causal_lm(each))
    expected = [whole(**batch(each)) for each in range(2)]
    for each in expected:
        each.loss.backward()

    mesh = init_device_mesh("cpu", (2,))
    for unit in [*UNITS[units](causal_lm(model)), model]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    head = causal_lm(model).lm_head
    assert isinstance(getattr(head, "base_layer", head).weight, DTensor)
    for _ in range(2):  # the second forward finds the plan of the first
        model.zero_grad()
        output = model(**batch(rank))
        output.loss.backward()
    assert output.loss.dtype == (policy.output_dtype or torch.float32)
    for name, pair in expected[rank].metrics.items():
        torch.testing.assert_close(output.metrics[name], pair, rtol=1e-5, atol=0, msg=name)
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            gradient = dict(model.named_parameters())[name].grad.full_tensor()
            # FSDP averages over ranks; the loss is already divided by the tokens of all of them.
            assert relative_error(2 * gradient, parameter.grad) < 1e-5, (units, name)


def test_03_a_sharded_head_is_gathered_where_its_forward_would_be(tmp_path):
    torch.multiprocessing.spawn(process, args=(str(tmp_path / "meeting"),), nprocs=2)


@pytest.mark.slow
def test_03_a_head_partitioned_by_zero3(tmp_path):
    """Needs DeepSpeed, which `make test-slow` puts into .cache/deepspeed."""
    packages = ROOT / ".cache/deepspeed"
    assert packages.is_dir(), "run `make test-slow`, which installs DeepSpeed there"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'tests'}:{packages}",
        "PATH": f"{packages / 'bin'}:{os.environ['PATH']}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = subprocess.run(
        # As a module: a script's own folder, first on the path, has a `tokenizers` too.
        [*torchrun, "--nproc_per_node", "2", "--module", "support.zero3_process"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "rank 0 agrees" in run.stdout and "rank 1 agrees" in run.stdout
