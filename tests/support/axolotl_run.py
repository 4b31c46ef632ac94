"""Runs the real Axolotl in a process of its own, forked from one that has imported it, on a tiny
model."""

import ast
import functools
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support.forks import Forks

DEEPSPEED = Path(__file__).resolve().parents[2] / ".cache/deepspeed"
"""Where `make test-slow` installs it."""

BASE = {
    "plugins": ["axolotl_distill"],
    "sequence_len": 128,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
    "optimizer": "adamw_torch",
    "bf16": False,
    "val_set_size": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "pad_to_sequence_len": False,
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "seed": 7,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}


@dataclass(frozen=True)
class Plan:
    """A run to come: what it changes in BASE, its processes, and whether these are what FSDP2 and
    DeepSpeed need (support/fleet.py)."""

    config: dict[str, Any]
    processes: int = 1
    as_gpus: bool = False


@dataclass(frozen=True)
class Run:
    """What a run left: its exit code, everything it printed, and what the trainer logged."""

    code: int
    log: str
    output: Path

    @property
    def ranks(self) -> int:
        """Processes that shared one optimizer step, as accelerate counts them."""
        return max(map(int, re.findall(r"axolotl-distill: (\d+) process", self.log)), default=0)

    @property
    def steps(self) -> list[dict[str, float]]:
        """One entry an optimizer step that was logged."""
        return self._logged("loss")

    @property
    def inside(self) -> list[dict[str, Any]]:
        """What support.run_spy.RunSpy saw, by rank."""
        spied = sorted(self.output.parent.glob("spy-*.json"))
        return [json.loads(path.read_text()) for path in spied]

    @property
    def evaluations(self) -> list[dict[str, float]]:
        return self._logged("eval_loss")

    def column(self, name: str) -> list[float]:
        return [step[name] for step in self.steps]

    def _logged(self, first: str) -> list[dict[str, float]]:
        found = [ast.literal_eval(text) for text in re.findall(rf"\{{'{first}': .*?\}}", self.log)]
        return [{name: float(value) for name, value in entry.items()} for entry in found]


def environment(**extra: str) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return {
        **env,
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        # PEFT makes adapters in the order of a set of names, and draws their weights in it.
        "PYTHONHASHSEED": "0",
        # Where a run finds support.spy_plugin.
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        **extra,
    }


@functools.cache
def forks() -> Forks:
    """What this test process forks its runs from."""
    return Forks(environment())


def run_axolotl(
    folder: Path,
    config: dict[str, Any],
    *,
    act: str = "train",
    processes: int = 1,
    check: bool = True,
) -> Run:
    """Write BASE updated by `config` to a YAML and train on it, or do what else Axolotl does with
    one; `folder` holds all it leaves."""
    path, output = write_config(folder, config)
    env, log = environment(), folder / "log"
    log.unlink(missing_ok=True)
    code = forks().run(
        *(f"axolotl.cli.{act}", [str(path)]),
        env=env, folder=folder, out=log, err=log, processes=processes,
    )  # fmt: skip
    said = log.read_text()
    if check and code:
        print(said[-6000:])
        raise AssertionError(f"axolotl ended with {code}")
    return Run(code, said, output)


def run_fleet(folder: Path, plans: Mapping[str, Plan]) -> dict[str, Run]:
    """Train each plan in `folder`/NAME, one after another.

    A run that fails is a Run like another; its log is printed."""
    env = environment()
    env["PYTHONPATH"] += f":{DEEPSPEED}"
    env["PATH"] = f"{DEEPSPEED / 'bin'}:{env['PATH']}"
    parent = Forks(env)
    runs = {}
    for name, plan in plans.items():
        config = {**plan.config}
        if plan.as_gpus:
            plugins = config.get("plugins", BASE["plugins"])
            config["plugins"] = [*plugins, "support.fleet.NoCpu"]
        path, output = write_config(folder / name, config)
        log = folder / name / "log"
        began = time.monotonic()
        code = parent.run(
            *("axolotl.cli.train", [str(path)]),
            env=env, folder=folder / name, out=log, err=log, seconds=300,
            processes=plan.processes, as_gpus=plan.as_gpus,
        )  # fmt: skip
        runs[name] = Run(code, log.read_text(), output)
        print(f"{name}: {code} after {time.monotonic() - began:.0f} s")
        if code:
            print(runs[name].log[-4000:])
    parent.end()
    return runs


def write_config(folder: Path, config: dict[str, Any]) -> tuple[Path, Path]:
    """BASE updated by `config` as a YAML in `folder`, which holds all that the run leaves; and its
    `output_dir`."""
    folder.mkdir(parents=True, exist_ok=True)
    full = {
        **BASE,
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
        **config,
    }
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump({k: v for k, v in full.items() if v is not None}))
    return path, Path(full["output_dir"])
