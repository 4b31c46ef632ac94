"""What differs between the versions of Axolotl that are supported, on the one that is installed."""

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import yaml
from axolotl.cli.config import load_cfg
from axolotl.core.builders import HFCausalTrainerBuilder
from axolotl.integrations.base import PluginManager
from axolotl.loaders import load_tokenizer
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.data.sft import prepare_datasets
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from support.axolotl_run import BASE

import axolotl_distill
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.host.compat import base_collator
from axolotl_distill.host.tokenise import capture_datasets
from axolotl_distill.store import open_store

pytestmark = pytest.mark.axolotl

DIFFUSION = "axolotl.integrations.diffusion.DiffusionPlugin"
HAS_BOUNDS = "emit_fa_varlen_kwargs" in {field.name for field in fields(DataCollatorForSeq2Seq)}
HAS_WEIGHT = "weight" in SFTDataset.model_fields


def written(folder, config):
    path = folder / "config.yml"
    folders = {"output_dir": "out", "dataset_prepared_path": "prepared"}
    places = {key: str(folder / name) for key, name in folders.items()}
    path.write_text(yaml.safe_dump({**BASE, **places, **config}))
    return str(path)


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
def test_the_collator_is_the_one_axolotl_would_take(no_plugins, packed, model, attention, more):
    cfg = DictDefault(
        model_config_type=model, attn_implementation=attention, sample_packing=packed, **more
    )
    builder = HFCausalTrainerBuilder.__new__(HFCausalTrainerBuilder)
    builder.cfg, builder.tokenizer = cfg, None
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


def test_a_store_is_subsampled_where_axolotl_can(no_plugins, tmp_path, config, store):
    """Half of its rows, each with the records that are its own."""
    config["datasets"][0]["weight"] = 0.5
    path = written(tmp_path, config)
    if not HAS_WEIGHT:
        with pytest.raises(ConfigError, match=r"`datasets\[\].weight` of .* needs Axolotl 0.20"):
            load_cfg(path)
        return
    cfg = load_cfg(path)
    PluginManager.get_instance().load_datasets(cfg)
    rows = prepare_datasets(cfg, load_tokenizer(cfg))[0]
    known = open_store(store)
    first_record = {
        tuple(row["input_ids"]): int(row["teacher_start"])
        for file in known.parquet_files
        for row in pq.read_table(file).to_pylist()
    }
    assert len(first_record) == 24 and len(rows) == 12
    for row in rows:
        pointers = [pointer for pointer in row["teacher_pos"] if pointer >= 0]
        assert pointers[0] == first_record[tuple(row["input_ids"])]


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
    path = written(tmp_path, {**config, "plugins": plugins})
    with pytest.raises(ConfigError, match=r"DiffusionPlugin` brings \w*Diff|`diffusion_lm` cannot"):
        PluginManager.get_instance().load_datasets(load_cfg(path))
