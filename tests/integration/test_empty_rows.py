"""Rows without a supervised token, through the real Axolotl."""

import json

import pytest
import torch
from axolotl.utils.dict import DictDefault
from safetensors.torch import load_file
from support.axolotl_run import run_axolotl

from axolotl_distill.errors import ConfigError
from axolotl_distill.host import compat
from axolotl_distill.host.compat import settle_precision

pytestmark = pytest.mark.axolotl

WHOLE = "<think>\nHm.\n</think>\n\nAt nine, as on any other day."
CUT_OFF = "<think>\nHm, I look at the table and"


def of_trajectories(folder, tiny_llama_dir, *answers):
    folder.mkdir(parents=True, exist_ok=True)
    turns = [
        [{"role": "user", "content": f"When, {i}?"}, {"role": "assistant", "content": answer}]
        for i, answer in enumerate(answers)
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    dataset = {"path": str(path), "ds_type": "json", "type": "axolotl_distill.trajectories"}
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {"teacher": "text"},
        "datasets": [dataset],
        "chat_template": "chatml",
        "micro_batch_size": 1,
        "max_steps": len(answers),
        "weight_decay": 0.1,
    }


def is_finite(run):
    weights = load_file(run.output / "model.safetensors")
    return all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_thinking_that_was_cut_off(tmp_path, tiny_llama_dir):
    """A step of such a row changes nothing, is said, and the steps after it learn. The YAML names
    no precision, for which Axolotl takes fp16 where there is no GPU."""
    config = of_trajectories(tmp_path, tiny_llama_dir, WHOLE, CUT_OFF, WHOLE, WHOLE)
    run = run_axolotl(tmp_path, {**config, "bf16": None})
    assert is_finite(run) and len(run.steps) == 4
    assert "1 of 4 rows of the training set have no supervised token" in run.log
    assert "has no supervised token, so it changes nothing" in run.log
    empty = [step for step in run.steps if "distill/ce" not in step]
    assert [(step["loss"], step["grad_norm"]) for step in empty] == [(0, 0)]
    assert "ppl" not in empty[0]
    if not compat.has_accelerator():
        assert "training in float32" in run.log


@pytest.mark.slow
def test_a_rank_without_a_label(tmp_path, tiny_llama_dir):
    """One of two, then both: the step is the other rank's, then none."""
    answers = [WHOLE, CUT_OFF, CUT_OFF, CUT_OFF]
    config = of_trajectories(tmp_path / "two", tiny_llama_dir, *answers)
    config |= {"max_steps": 2, "curriculum_sampling": True, "shuffle_merged_datasets": False}
    two = run_axolotl(tmp_path / "two", config, processes=2)
    one = run_axolotl(tmp_path / "one", config)
    assert two.ranks == 2 and is_finite(two)
    assert sorted(two.column("loss"))[0] == 0
    assert max(two.column("loss")) == pytest.approx(max(one.column("loss")), rel=1e-3)


@pytest.mark.slow
def test_a_store_cut_shorter_than_its_prompts(tmp_path, config):
    """Captured whole, trained at a length that holds no answer of some rows."""
    config["sequence_len"], config["excess_length_strategy"] = 24, "truncate"
    run = run_axolotl(tmp_path, {**config, "micro_batch_size": 1, "max_steps": 24})
    assert is_finite(run) and "rows of the training set have no supervised token" in run.log
    assert {"distill/kl" in step for step in run.steps} == {True, False}


def test_the_precision_of_a_cpu(monkeypatch):
    monkeypatch.setattr(compat, "has_accelerator", lambda: False)
    for given, expected in (({}, False), ({"bf16": "auto"}, False), ({"bf16": True}, True)):
        cfg = DictDefault(given)
        settle_precision(cfg)
        assert cfg.bf16 is expected
    for key in ("fp16", "float16"):
        with pytest.raises(ConfigError, match=rf"`{key}: true` needs a GPU"):
            settle_precision(DictDefault({key: True, "bf16": "auto"}))
    monkeypatch.setattr(compat, "has_accelerator", lambda: True)
    cfg = DictDefault({"bf16": "auto", "fp16": None})
    settle_precision(cfg)
    assert cfg.bf16 == "auto"
