"""Fault 3 of test_peer_faults.py: a head that FSDP2 or ZeRO-3 shards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from support.kernel_cases import relative_error
from support.sharded import attach, batch, student
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

pytestmark = pytest.mark.axolotl

ROOT = Path(__file__).resolve().parents[2]


def process(rank: int, meeting: str, own_unit: bool) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    whole = student()
    attach(whole)
    for each in range(2):
        whole(**batch(each)).loss.backward()

    mesh = init_device_mesh("cpu", (2,))
    model = student()
    attach(model)
    if own_unit:
        fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    assert isinstance(model.lm_head.weight, DTensor)
    for _ in range(2):  # the second forward finds the plan of the first
        model.zero_grad()
        model(**batch(rank)).loss.backward()
    for name, parameter in whole.named_parameters():
        gradient = dict(model.named_parameters())[name].grad.full_tensor()
        # FSDP averages over ranks; the loss is already divided by the tokens of all of them.
        assert relative_error(2 * gradient, parameter.grad) < 1e-5, name
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("own_unit", [True, False])
def test_03_a_sharded_head_is_gathered_where_its_forward_would_be(tmp_path, own_unit):
    arguments = (str(tmp_path / "meeting"), own_unit)
    torch.multiprocessing.spawn(process, args=arguments, nprocs=2)


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
        [*torchrun, "--nproc_per_node", "2", str(ROOT / "tests/support/zero3_process.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "rank 0 agrees" in run.stdout and "rank 1 agrees" in run.stdout
