"""Runs of Axolotl in processes forked from one, `python -m support.fleet`: most of a tiny run's
time is imports, paid once here.

It reads jobs, one JSON object a line, and answers each with its exit code, as soon as it is done.
Each process of a run is a fork that does what `python -m MODULE ARGS…` would, or what torchrun
would with it: the launcher's variables, then the module as __main__.

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
from typing import Any

# What a run imports.
import axolotl.common.datasets
import axolotl.core.builders.causal
import axolotl.train
import axolotl.utils.trainer  # noqa: F401
import multiprocess
import transformers.training_args
from accelerate import DistributedType, ParallelismConfig, PartialState
from axolotl.integrations.base import BasePlugin
from axolotl.loaders import ModelLoader
from support.forks import in_a_fork

import axolotl_distill.host.in_force  # noqa: F401


class NoCpu(BasePlugin):
    """After ours, which asks for `use_cpu` where torch sees no accelerator."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": False}


def fork_to_save() -> None:
    """`datasets` saves in a spawned process, which would import all of this again."""
    get_context = multiprocess.get_context
    multiprocess.get_context = lambda method=None: get_context(
        "fork" if method == "spawn" else method
    )


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


def run(job: dict[str, Any], rank: int, port: int) -> None:
    """One process of a run; never returns."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ |= job["env"]
    in_a_fork(job["seconds"] - 5)
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
        sys.argv = [job["module"], *job["args"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
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
            run(job, rank, port)
        running.add(child)
    code, deadline = 0, time.monotonic() + job["seconds"]
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
    fork_to_save()
    for line in sys.stdin:
        print(json.dumps({"code": launch(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
