"""What differs between the versions of Axolotl that are supported, on the one that is installed."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from axolotl.cli.config import load_cfg
from axolotl.core.builders import HFCausalTrainerBuilder
from axolotl.integrations.base import PluginManager
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from support.axolotl_run import BASE

import axolotl_distill
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.compat import base_collator
from axolotl_distill.host.datasets.types import STORE_TYPE, resolve_types
from axolotl_distill.host.tokenise import capture_datasets

pytestmark = pytest.mark.axolotl

DIFFUSION = "axolotl.integrations.diffusion.DiffusionPlugin"
HAS_BOUNDS = "emit_fa_varlen_kwargs" in {field.name for field in fields(DataCollatorForSeq2Seq)}
HAS_WEIGHT = "weight" in SFTDataset.model_fields


@pytest.fixture
def no_plugins(monkeypatch):
    """Plugins that an earlier test registered in this process are out of the way."""
    monkeypatch.setattr(PluginManager, "_instance", None)


def test_only_compat_asks_which_axolotl_it_is():
    package = Path(axolotl_distill.__file__).parent
    asks = re.compile(
        r"""axolotl\.__version__|version\(["']axolotl["']|SFTDataset|\bfields\(Data"""
    )
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if asks.search(path.read_text())
    }
    assert found == {"host/compat.py"}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("model", ["llama", "qwen2", "gpt_bigcode", "phi"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("more", [{}, {"streaming": True}, {"fa_varlen_kwargs_in_collator": False}])
def test_the_collator_is_the_one_axolotl_would_take(
    no_plugins, tokenizer, packed, model, attention, more
):
    cfg = DictDefault(
        model_config_type=model, attn_implementation=attention, sample_packing=packed, **more
    )
    builder = HFCausalTrainerBuilder.__new__(HFCausalTrainerBuilder)
    builder.cfg, builder.tokenizer = cfg, tokenizer
    asked = SimpleNamespace(pretraining=False, sample_packing=packed, eval_sample_packing=packed)
    theirs = builder.build_collator(asked)
    ours = base_collator(cfg, is_eval=False)
    assert ours["base_cls"] is type(theirs)
    assert ours["packed"] is packed
    assert ours.get("emit_fa_varlen_kwargs", False) == getattr(
        theirs, "emit_fa_varlen_kwargs", False
    )


@pytest.mark.skipif(not HAS_BOUNDS, reason="this Axolotl's batches have no bounds of documents")
def test_packed_batches_bring_the_bounds_of_their_documents(tokenizer):
    cfg = DictDefault(
        model_config_type="llama", attn_implementation="flash_attention_2", sample_packing=True
    )
    collator = TeacherCollator(
        tokenizer, **base_collator(cfg, is_eval=False), stores=[], temperature=1.0
    )
    rows = [
        {
            "input_ids": list(range(5, 5 + n)),
            "labels": [7] * n,
            "attention_mask": [1] * n,
            "position_ids": list(range(n)),
        }
        for n in (4, 3, 6)
    ]
    batch = collator([rows])
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 7, 13]
    assert batch["max_length_q"] == 6
    assert (batch["labels"][0, torch.tensor([0, 4, 7])] == -100).all()


def test_a_store_is_subsampled_where_axolotl_can():
    entry = {"path": "x", "type": STORE_TYPE, "weight": 0.5}
    if HAS_WEIGHT:
        resolve_types([entry])
        assert entry["weight"] == 0.5
    else:
        with pytest.raises(ConfigError, match=r"`datasets\[\].weight` of x needs Axolotl 0.20"):
            resolve_types([entry])


def test_a_capture_takes_every_row():
    text = {"path": "x.jsonl", "type": "chat_template"}
    capture = {"teacher": "t", "output": "o", "datasets": [{**text, "weight": 0.5}]}
    args = parse_distill({"capture": capture}).capture
    with pytest.raises(ConfigError, match=r"`weight: 0.5` of x.jsonl: a store holds every row"):
        capture_datasets(DictDefault(), args)
    args.datasets[0]["weight"] = 1.0
    assert capture_datasets(DictDefault(), args)


@pytest.mark.parametrize("first", [True, False])
def test_the_diffusion_plugin_before_and_after_ours(no_plugins, tmp_path, config, first):
    """Axolotl's own: its trainer has another loss, and Axolotl takes the first it is given."""
    plugins = [DIFFUSION, "axolotl_distill"] if first else ["axolotl_distill", DIFFUSION]
    path = tmp_path / "config.yml"
    settings = {**BASE, **config, "plugins": plugins, "output_dir": str(tmp_path / "out")}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"DiffusionPlugin` brings \w*Diff|`diffusion_lm` cannot"):
        PluginManager.get_instance().load_datasets(load_cfg(str(path)))
