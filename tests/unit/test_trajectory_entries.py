"""A dataset entry that trains trajectories: its keys, its caches, and what may stand beside it."""

import json

import datasets
import pytest
from axolotl.utils.config import validate_config
from axolotl.utils.data.shared import generate_dataset_hash_from_config, load_dataset_with_config
from axolotl.utils.dict import DictDefault

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.thinking import parse_thinking
from axolotl_distill.host.datasets.types import (
    follow_content,
    resolve_types,
    thinking_of,
    weighs_thinking,
)
from axolotl_distill.host.tokenise import capture_datasets


@pytest.mark.parametrize("value", ["half", -1, float("nan"), True, [1]])
def test_wrong_values_of_thinking(value):
    with pytest.raises(ConfigError, match=r"train .*mask .*drop"):
        parse_thinking(value)


def test_thinking_passes_axolotls_schema_and_its_cache_key():
    """Axolotl drops the keys it does not know; this one arrives, and makes a cache of its own."""

    def validated(thinking):
        entry = {"path": "x", "type": "axolotl_distill.trajectories", "thinking": thinking}
        datasets = {"datasets": [dict(entry)], "test_datasets": [dict(entry)]}
        cfg = DictDefault(
            {"base_model": "m", "learning_rate": 1e-3, "micro_batch_size": 1, **datasets}
        )
        cfg.gradient_accumulation_steps = 1
        resolve_types(cfg.datasets)
        resolve_types(cfg.test_datasets)
        return validate_config(cfg)

    keys = set()
    for value, expected in {"mask": 0.0, 0.3: 0.3, "drop": "drop", None: 1.0}.items():
        cfg = validated(value)
        assert thinking_of(cfg.datasets[0]) == thinking_of(cfg.test_datasets[0]) == expected
        assert weighs_thinking(cfg.datasets) == (value == 0.3)
        keys.add(generate_dataset_hash_from_config(cfg, cfg.datasets, "t"))
    assert len(keys) == 4


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"type": "axolotl_distill.trajectories", "thinkin": "mask"}, "thinkin` is not a key"),
        ({"type": "chat_template", "thinking": "mask"}, "option of type axolotl_distill.traj"),
        ({"type": "axolotl_distill.trajectories", "thinking": "no"}, "expected train"),
    ],
)
def test_keys_that_would_be_lost(entry, message):
    with pytest.raises(ConfigError, match=message):
        resolve_types([DictDefault({"path": "x", **entry})])


@pytest.mark.parametrize("mark", ["generation.json", "rollouts.json"])
@pytest.mark.parametrize("kind", ["axolotl_distill.trajectories", "chat_template"])
def test_what_was_not_filtered_is_no_dataset(tmp_path, mark, kind):
    """Its answers stand beside the conversations, where Axolotl does not look."""
    (tmp_path / mark).write_text("{}")
    for path in (tmp_path, tmp_path / "part-00000.jsonl"):
        with pytest.raises(ConfigError, match=rf"filter: {{input: {tmp_path}, output: DATASET}}"):
            resolve_types([DictDefault({"path": str(path), "type": kind})])
    resolve_types([DictDefault({"path": str(tmp_path / "dataset"), "type": kind})])


def test_a_folder_filtered_again_is_read_again(tmp_path, monkeypatch):
    """Neither Axolotl's cache nor that of `datasets` takes a new dataset card for an old one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - {{split: {s}, path: data/{s}-*}}\n" for s in ("train", "eval")) + "---\n"
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(card)
    revisions = set()
    for version in ("first", "second"):
        for split in ("train", "eval"):
            row = json.dumps({"x": f"{version} {split}"})
            (folder / "data" / f"{split}-00000.jsonl").write_text(row + "\n")
        for split in ("train", "eval"):
            entry = DictDefault({"path": str(folder), "split": split})
            entry.type = "axolotl_distill.trajectories"
            follow_content([entry])
            assert load_dataset_with_config(entry, False)["x"][:] == [f"{version} {split}"]
        revisions.add(entry.revision)
    assert len(revisions) == 2


def test_a_store_cannot_keep_weights():
    def captured(thinking):
        entry = {"path": "x", "type": "axolotl_distill.trajectories", "thinking": thinking}
        args = CaptureArgs(teacher="t", output="o", datasets=[entry])
        return capture_datasets(DictDefault({}), args)

    assert captured("mask") and captured("train")
    with pytest.raises(ConfigError, match="would be lost"):
        captured(0.5)


def test_text_alone_has_no_divergence():
    args = parse_distill({"teacher": "text", "label_smoothing": 0.1})
    assert args.alpha == 0.0
    assert parse_distill(args.model_dump(exclude_unset=True)) == args
    with pytest.raises(ConfigError, match=r"`alpha: 0.7` is not read with `teacher: text`"):
        parse_distill({"teacher": "text", "alpha": 0.7})
    with pytest.raises(ConfigError, match=r"`divergence: jsd` is not read with"):
        parse_distill({"teacher": "text", "divergence": "jsd"})
