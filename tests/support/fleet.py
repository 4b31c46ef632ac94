"""Trainings one after another in processes forked from one: `-m support.fleet JOBS.json`.

Most of a tiny run's time is imports, paid once here. Each process of a run is a fork that does what
`torchrun -m axolotl.cli.train CONFIG` would: the launcher's variables, then the module as __main__.

With `as_gpus` a run's processes are what accelerate takes for GPUs, in tests alone, since it shards
models over nothing else; what shards, trains and saves is the real FSDP2 and the real DeepSpeed.
"""

import json
import os
import runpy
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

# What a run imports.
import axolotl.common.datasets
import axolotl.core.builders.causal
import axolotl.train
import axolotl.utils.trainer  # noqa: F401
import transformers.training_args
from accelerate import DistributedType, ParallelismConfig, PartialState
from axolotl.integrations.base import BasePlugin
from axolotl.loaders import ModelLoader

import axolotl_distill.host.in_force  # noqa: F401

PATIENCE = 300.0
"""Seconds that a run may take."""


class NoCpu(BasePlugin):
    """After ours, which asks for `use_cpu` where torch sees no accelerator."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": False}


def take_for_gpus() -> None:
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    PartialState._prepare_backend = lambda self, *_: ("gloo", DistributedType.MULTI_GPU)
    build = ParallelismConfig.build_device_mesh
    # Axolotl says "cuda", and counts devices, in so many words.
    ParallelismConfig.build_device_mesh = lambda self, device: build(self, "cpu")
    place = ModelLoader._set_device_map_config

    def place_on_the_cpu(self: ModelLoader) -> None:
        place(self)
        if "device_map" in self.model_kwargs:
            self.model_kwargs["device_map"] = "cpu"

    ModelLoader._set_device_map_config = place_on_the_cpu
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True


def train(job: dict[str, Any], rank: int, port: int) -> None:
    """One process of a run; never returns."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(Path(job["log"]).parent)
    code = 1
    try:
        if job["processes"] > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(job["processes"]),
                "LOCAL_WORLD_SIZE": str(job["processes"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            if job["as_gpus"]:
                take_for_gpus()
            else:
                os.environ["ACCELERATE_USE_CPU"] = "true"
        sys.argv = ["axolotl.cli.train", job["config"]]
        runpy.run_module("axolotl.cli.train", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(job: dict[str, Any]) -> int:
    """The exit code of a run: 0 where every process ended with it; the first failure ends all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = set()
    for rank in range(job["processes"]):
        child = os.fork()
        if child == 0:
            train(job, rank, port)
        running.add(child)
    code, deadline = 0, time.monotonic() + PATIENCE
    while running:
        done, status = os.waitpid(-1, os.WNOHANG)
        if done:
            running.discard(done)
            code = code or os.waitstatus_to_exitcode(status)
        if code or time.monotonic() > deadline:
            code = code or 124
            for child in running:
                os.kill(child, 9)
                os.waitpid(child, 0)
            break
        time.sleep(0.05)
    return code


def main() -> None:
    for job in json.loads(Path(sys.argv[1]).read_text()):
        began = time.monotonic()
        code = launch(job)
        print(json.dumps({**job, "code": code, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
