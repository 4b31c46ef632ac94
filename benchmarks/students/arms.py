"""Students of one teacher by real runs of Axolotl, which differ in `distill:` alone."""

import ast
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from axolotl_distill.trajectories import is_unfinished
from students.problems import MOST_TOKENS, ROOT

PROMPTS = 16
"""of a step"""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # PEFT makes adapters in the order of a set of names, and draws their weights in it.
    "PYTHONHASHSEED": "0",
}
BASE: dict[str, Any] = {
    "plugins": ["axolotl_distill"],
    "adapter": "lora",
    "lora_r": 32,
    "lora_alpha": 64,
    "lora_target_linear": True,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "sequence_len": 128,
    "attn_implementation": "sdpa",
    "micro_batch_size": PROMPTS,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-4,
    "lr_scheduler": "cosine",
    "warmup_steps": 3,
    "optimizer": "adamw_torch",
    "bf16": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
}


def distills(teacher: Path) -> dict[str, dict[str, Any]]:
    """The arms, by the `distill:` of each."""
    graded = {"teacher": str(teacher), "alpha": 1.0}

    def own(divergence: str, lmbda: float = 1.0, **more: Any) -> dict[str, Any]:
        rollout = {"lmbda": lmbda, "max_new_tokens": MOST_TOKENS, "samples": 0}
        return {**graded, "divergence": divergence, "on_policy": rollout, **more}

    return {
        "sft": {"teacher": "text"},
        "off-policy forward_kl": {**graded, "divergence": "forward_kl"},
        "on-policy forward_kl": own("forward_kl"),
        "on-policy reverse_kl": own("reverse_kl"),
        "mixed forward_kl": own("forward_kl", lmbda=0.5),
        "on-policy jsd": own("jsd", beta=0.5),
    }


@dataclass(frozen=True)
class Trained:
    """cpu_seconds   of the whole process, imports included
    seconds       of the training alone, by the clock
    writing       the share of the steps' seconds that writing took; None where nothing is written
    """

    cpu_seconds: float
    seconds: float
    writing: float | None


def train(folder: Path, config: dict[str, Any]) -> Trained:
    """Axolotl on BASE updated by `config`; the adapter is in `folder`/out, and all else that it
    leaves beside it. Raises SystemExit where it fails."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = {
        **BASE,
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        **config,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(whole, sort_keys=False))
    before = _children()
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "axolotl.cli.train", str(folder / "config.yml")]
        done = subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **QUIET})
    said = (folder / "log").read_text()
    if done.returncode:
        raise SystemExit(f"{said[-3000:]}\nAxolotl ended with {done.returncode}: {folder}/log")
    (taken,) = re.findall(r"'train_runtime': '?([\d.]+)", said)
    steps = [ast.literal_eval(text) for text in re.findall(r"\{'loss': .*?\}", said)]
    shares = [float(step["rollout/share"]) for step in steps if "rollout/share" in step]
    return Trained(_children() - before, float(taken), statistics.mean(shares) if shares else None)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def merged(base: Path, adapter: Path) -> PreTrainedModel:
    """A base with its adapter put into the weights, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


def keep_model(model: PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    """As a folder that others begin with; in bf16, which is what they compute in."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(unfinished)
    unfinished.rename(folder)


def write_rows(rows: list[dict], path: Path) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(
    teacher: Path,
    prompts: str,
    system: str,
    folder: Path,
    most: int = MOST_TOKENS,
    *,
    whole: bool = False,
) -> str:
    """A file of chats with what a teacher answers at T = 1 in at most so many tokens; made once.
    `whole`: without the answers that are cut there."""
    chats = folder / "chats.jsonl"
    if not chats.exists():
        output = folder / "trajectories"
        recipe = {
            "teacher": {"model": str(teacher), "dtype": "float32"},
            "generate": {
                "prompts": [{"path": prompts, "prompt": "prompt"}],
                "output": str(output),
                "system": system,
                "temperature": 1.0,
                "top_p": 1.0,
                "max_tokens": most,
                "batch_size": 64,
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe))
        command = [str(Path(sys.executable).with_name("axolotl")), "distill", "generate"]
        subprocess.run([*command, str(path)], check=True, env={**os.environ, **QUIET}, cwd=ROOT)
        found = [
            json.loads(line)
            for part in sorted(output.glob("part-*.jsonl"))
            for line in part.read_text().splitlines()
        ]
        rows = [
            {"messages": [*row["messages"], {"role": "assistant", "content": row["content"]}]}
            for row in sorted(found, key=lambda row: row["id"])
            if not (whole and is_unfinished(row["finish_reason"]))
        ]
        write_rows(rows, chats.with_suffix(".new"))
        chats.with_suffix(".new").rename(chats)
    return str(chats)
