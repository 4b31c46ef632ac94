"""What cannot work is refused before a weight is read, with the key or file and the remedy."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from axolotl.utils.dict import DictDefault
from support.axolotl_run import BASE, run_axolotl
from support.cli import distill_here
from support.stores import capture_rows

from axolotl_distill.commands.recipe import load_recipe
from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.errors import (
    ConfigError,
    StoreCorruptError,
    StoreError,
    StoreMissingError,
)
from axolotl_distill.host.checks import check_config, check_stores
from axolotl_distill.host.datasets.types import resolve_types
from axolotl_distill.terms import check_terms

pytestmark = pytest.mark.axolotl

ALL_EXAMPLES = sorted(Path(__file__).resolve().parents[2].glob("example_configs/**/*.yml"))
RECIPES = [path for path in ALL_EXAMPLES if path.name == "recipe.yml"]
EXAMPLES = [path for path in ALL_EXAMPLES if path not in RECIPES]


@pytest.fixture
def cfg(config):
    """The config as Axolotl would hand it to the plugin."""
    return DictDefault({**BASE, **config, "tokenizer_config": config["base_model"]})


def args(**values):
    return parse_distill({"temperature": 2.0, **values})


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"rl": "dpo"}, "`rl` cannot be combined"),
        ({"kd_trainer": True}, "other distillation plugin"),
        ({"pretraining_dataset": "x"}, "streaming: true"),
        ({"use_dft": True}, "`use_dft` cannot be combined"),
        ({"diffusion_lm": True}, "`diffusion_lm` cannot be combined"),
        ({"trainer_cls": "my.Trainer"}, "a trainer of its own"),
        ({"skip_prepare_dataset": True}, "`skip_prepare_dataset` cannot be combined"),
        ({"context_parallel_size": 2}, "context_parallel_size: 2"),
        ({"sequence_parallel_degree": 2}, "sequence_parallel_degree: 2"),
        ({"context_parallel": {"size": 4}}, "context_parallel: 4"),
        ({"tensor_parallel_size": "2"}, "tensor_parallel_size: 2"),
        ({"expert_parallel_size": 2}, "expert_parallel_size: 2"),
        ({"fsdp": ["full_shard"]}, "fsdp_version: 1"),
        ({"fsdp_config": {"reshard_after_forward": True}}, "Set `fsdp_version: 2`"),
        ({"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, "autotp_size: 2"),
        ({"deepspeed": {"sequence_parallel_size": 2}}, r"deepspeed\.sequence_parallel_size: 2"),
        (
            {"streaming": True, "sample_packing": True, "datasets": [{}, {}]}
            | {"attn_implementation": "sdpa"},
            "reads the first entry",
        ),
        ({"sample_packing": True}, "attn_implementation"),
    ],
)
def test_impossible_combinations(cfg, extra, message):
    for key, value in extra.items():
        cfg[key] = value
    with pytest.raises(ConfigError, match=message):
        check_config(cfg, args())


@pytest.mark.parametrize(
    "extra",
    [
        {"context_parallel_size": 1, "tensor_parallel_size": 1, "fsdp_version": 2},
        {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
        {"deepspeed": {"zero_optimization": {"stage": 3}}, "dp_replicate_size": 2},
    ],
)
def test_what_is_only_untested_is_not_refused_by_its_key(cfg, extra):
    """Whether it is in force is seen, and said, once the trainer stands."""
    check_config(DictDefault({**cfg, **extra}), args())


def test_keys_without_effect_are_named(cfg, caplog):
    cfg.chunked_cross_entropy = True
    with caplog.at_level("WARNING"):
        check_config(cfg, args())
    assert "`chunked_cross_entropy` has no effect" in caplog.text


@pytest.mark.parametrize(
    "option",
    [
        {"roles_to_train": ["assistant"]},
        {"train_on_eos": "all"},
        {"chat_template": "chatml"},
        {"message_property_mappings": {"role": "from"}},
        {"field_messages": "turns"},
        {"data_files": ["x.parquet"]},
        {"shard": 2},
    ],
)
def test_options_that_a_store_ignores(option):
    with pytest.raises(ConfigError, match=rf"{next(iter(option))}.*fixed when it was captured"):
        resolve_types([{"path": "./s", "type": "axolotl_distill.store", **option}])


def test_a_store_has_one_split():
    entry = {"path": "./s", "type": "axolotl_distill.store", "shards": 2, "shards_idx": 1}
    with pytest.raises(ConfigError, match="split: test"):
        resolve_types([{**entry, "split": "test"}])
    resolve_types([{**entry, "split": "train[:50%]"}])
    resolve_types([entry])
    assert entry["split"] == "train"
    # Axolotl validates a config again on a Ray worker.
    resolve_types([entry])


def test_labels_of_a_store_are_those_of_its_capture(cfg):
    cfg.train_on_inputs = True
    with pytest.raises(ConfigError, match=r"train_on_inputs: True.*fixed with False"):
        check_stores(cfg, args())


def test_capture_and_training_must_agree(cfg):
    block = {"teacher": "t", "output": "o", "temperatures": [1.0, 4.0]}
    with pytest.raises(ConfigError, match=r"temperature: 2.*capture.temperatures"):
        check_config(cfg, args(capture=block))
    check_config(cfg, args(capture=block, support="renormalize"))


def test_fitting_store_is_accepted(cfg, store):
    assert [s.path for s in check_stores(cfg, args())] == [store]


def test_no_store_at_all(cfg):
    cfg.datasets = [{"path": "x.jsonl", "type": "chat_template"}]
    with pytest.raises(ConfigError, match="axolotl distill capture"):
        check_stores(cfg, args())


def test_missing_store_and_shard(cfg, store, tmp_path):
    cfg.datasets[0]["path"] = str(tmp_path / "nowhere")
    with pytest.raises(StoreMissingError, match="nowhere"):
        check_stores(cfg, args())
    copy = shutil.copytree(store, tmp_path / "copy")
    next((copy / "teacher").iterdir()).unlink()
    cfg.datasets[0]["path"] = str(copy)
    with pytest.raises(StoreMissingError, match="is missing"):
        check_stores(cfg, args())


def test_smaller_vocabulary(cfg, tmp_path, tiny_llama_dir):
    small = shutil.copytree(tiny_llama_dir, tmp_path / "small")
    about = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**about, "vocab_size": 40_000}))
    cfg.base_model = str(small)
    with pytest.raises(StoreError, match=r"40000 rows.*49151"):
        check_stores(cfg, args())


def test_larger_padded_head_is_fine(cfg, tmp_path, tiny_llama_dir):
    large = shutil.copytree(tiny_llama_dir, tmp_path / "large")
    about = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps({**about, "vocab_size": 49_280}))
    cfg.base_model = str(large)
    check_stores(cfg, args())


def test_temperature_or_support_that_the_store_lacks(cfg):
    with pytest.raises(StoreError, match=r"\[1.0, 2.0, 4.0\].*distill.temperature` is 3"):
        check_stores(cfg, args(temperature=3.0))
    check_stores(cfg, args(temperature=3.0, support="renormalize"))
    with pytest.raises(StoreError, match="tail_bucket or renormalize"):
        check_stores(cfg, args(support="sampled"))


def test_no_supervised_token(cfg, tmp_path, tiny_model):
    path = capture_rows(tmp_path / "s", tiny_model, [], k=4)
    cfg.datasets[0]["path"] = str(path)
    with pytest.raises(StoreError, match="no token of its dataset is supervised"):
        check_stores(cfg, args())


def test_a_run_ends_with_the_message(tmp_path, config):
    """Through the real Axolotl: the message comes out, and no model was loaded."""
    config["distill"] = {"alpha": 0.5, "temperatur": 2.0}
    run = run_axolotl(tmp_path, config, check=False)
    assert run.code != 0
    assert "did you mean `temperature`?" in run.log
    assert "Loading weights" not in run.log


def test_a_damaged_store_ends_the_run(tmp_path, config, store):
    copy = shutil.copytree(store, tmp_path / "copy")
    file = next((copy / "teacher").iterdir())
    file.write_bytes(file.read_bytes()[:-8])
    config["datasets"][0]["path"] = str(copy)
    run = run_axolotl(tmp_path, config, check=False)
    assert run.code != 0
    assert StoreCorruptError.__name__ in run.log and file.name in run.log
    assert "Loading weights" not in run.log


def example_name(path):
    return "/".join(path.parts[path.parts.index("example_configs") + 1 :])


@pytest.mark.parametrize("path", RECIPES, ids=example_name)
def test_example_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert {"verify", "thinking"} <= {step.kind for step in recipe.filter.steps}
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Hardware" in line for line in header) and any("Command" in line for line in header)
    assert check_terms(recipe.teacher.model, recipe.teacher.terms).verdict == "permitted"


@pytest.mark.parametrize("path", EXAMPLES, ids=example_name)
def test_example_configs_are_valid(path):
    """Axolotl's schema, ours within it, accepts every example; each says how to run it."""
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config

    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert any("Hardware" in line for line in header) and any("Command" in line for line in header)
    cfg = DictDefault(yaml.safe_load(text))
    prepare_plugins(cfg)
    capabilities = {"bf16": True, "fp8": False, "n_gpu": 1, "compute_capability": "sm_90"}
    versions = {"torch_version": "2.11.0"}
    checked = validate_config(cfg, capabilities=capabilities, env_capabilities=versions)
    if "distill:" in text:
        assert checked.distill.temperature > 0
        assert checked.datasets[0].type == "axolotl_distill.host.datasets.store"


def test_the_schema_of_the_block():
    """`axolotl config-schema` takes nothing from plugins, so there is a command of ours."""
    block = json.loads(distill_here("schema").stdout)["distill"]
    assert set(block["properties"]) == set(DistillArgs.model_fields)
    assert block["properties"]["temperature"]["default"] == 2.0
