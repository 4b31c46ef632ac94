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
from axolotl_distill.host.checks import config_findings
from axolotl_distill.host.datasets.types import open_stores, resolve_types
from axolotl_distill.host.findings import enforce
from axolotl_distill.host.plugin import DistillPlugin
from axolotl_distill.host.store_checks import stores_findings
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


FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
ZERO2 = {"deepspeed": {"zero_optimization": {"stage": 2}}}
SHARDED = {"state_dict_type": "SHARDED_STATE_DICT"}
LORA = {"adapter": "lora"}
SPLIT = {"tensor_parallel_size": 2, "save_only_model": True}


def check_config(cfg, args):
    enforce(config_findings(cfg, args))


def check_stores(cfg, args):
    enforce(stores_findings(cfg, args))


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
        ({"tensor_parallel_size": "2", "save_strategy": "steps"}, "needs `save_only_model: true`"),
        ({"tensor_parallel_size": 2, **LORA}, "each trains an adapter of its own"),
        ({"tensor_parallel_size": 2, "load_in_4bit": True}, "with `load_in_4bit`"),
        ({"tensor_parallel_size": 2, **FSDP2}, "combined with `fsdp_config`"),
        ({"tensor_parallel_size": 2, "dp_replicate_size": 2}, "combined with `dp_replicate_size`"),
        ({"tensor_parallel_size": {"size": 2}, "deepspeed": "zero.json"}, "with `deepspeed`"),
        ({**SPLIT, "resume_from_checkpoint": "out"}, "with `resume_from_checkpoint`"),
        ({**SPLIT, "auto_resume_from_checkpoints": True}, "with `auto_resume_from_checkpoints`"),
        ({**SPLIT, "distill": {"on_policy": {"length": 9}}}, "with `distill.on_policy`"),
        ({**SPLIT, "distill": {"hidden_states": {"layers": 2}}}, "with `distill.hidden_states`"),
        ({**SPLIT, "distill": {"cross_tokenizer": "uld"}}, "with `distill.cross_tokenizer`"),
        ({**SPLIT, "distill": {"teacher": {"self": True}}}, "a teacher that is the student itself"),
        ({"expert_parallel_size": 2}, "expert_parallel_size: 2"),
        ({"fsdp": ["full_shard"]}, "fsdp_version: 1"),
        ({"fsdp_config": {"reshard_after_forward": True}}, "Set `fsdp_version: 2`"),
        ({**FSDP2, "fsdp_config": SHARDED}, "Add `final_state_dict_type: FULL_STATE_DICT`"),
        ({**FSDP2, **LORA, "lora_modules_to_save": ["lm_head"]}, "`lora_modules_to_save` cannot"),
        (
            {**LORA, "fsdp_version": 2, "fsdp_config": {"activation_checkpointing": True}},
            "Set `gradient_checkpointing: true`",
        ),
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
        FSDP2,
        {**FSDP2, "fsdp_config": {**SHARDED, "final_state_dict_type": "FULL_STATE_DICT"}},
        {**FSDP2, "fsdp_config": SHARDED, **LORA},
        {**LORA, "lora_modules_to_save": ["lm_head"]},
        {"deepspeed": {"zero_optimization": {"stage": 3}}, "dp_replicate_size": 2},
        {"tensor_parallel_size": 2, "save_only_model": True},
        {"tensor_parallel_size": 2, "save_strategy": "no", "dp_shard_size": 1},
        {"tensor_parallel_size": 2, "save_strategy": False},  # a bare `no`, as YAML reads it
    ],
)
def test_what_may_work_is_not_refused_by_its_key(cfg, extra):
    """Whether it is in force is seen, and said, once the trainer stands."""
    check_config(DictDefault({**cfg, **extra}), args())


@pytest.mark.parametrize(
    "moving",
    [
        {"peft_init_lora_weights": "pissa_niter_4"},
        {"peft": {"loftq_config": {"loftq_bits": 4}}},
        {"relora": True},
        {"unfrozen_parameters": ["lm_head"]},
    ],
)
def test_a_student_whose_base_moves_is_no_teacher_of_itself(cfg, moving):
    block = {"teacher": "self"}
    check_config(
        DictDefault({**cfg, **LORA, "peft_init_lora_weights": False}), parse_distill(block)
    )
    with pytest.raises(ConfigError, match=rf"`{next(iter(moving))}.*name a `model`"):
        check_config(DictDefault({**cfg, **LORA, **moving}), parse_distill(block))


@pytest.mark.parametrize(
    "spread, distill, message",
    [
        (
            FSDP2,
            {"teacher": "self"},
            "`fsdp_config` cannot be combined with `distill.teacher: self`",
        ),
        ({"deepspeed": "zero3.json"}, {"teacher": "m", "on_policy": {}}, None),
        (ZERO2, {"teacher": "self", "on_policy": {}}, None),
        (ZERO2, {"teacher": {"self": True, "ema": 0.9}}, "without the average"),
        (
            {"deepspeed": "zero3.json"},
            {"teacher": "self"},
            "`deepspeed` cannot be combined with `distill.teacher: self`",
        ),
        (
            {"deepspeed": {"zero_optimization": {"stage": 3}}, "val_set_size": 0.1},
            {"teacher": "m", "on_policy": {"evaluate": 4}},
            "unlike numbers of batches",
        ),
        (
            {**ZERO2, "val_set_size": 0.1},
            {"teacher": "m", "on_policy": {"evaluate": 4}},
            None,
        ),
        (FSDP2, {"teacher": "m", "on_policy": {}}, None),
        (FSDP2, {"teacher": "m"}, None),
        ({"deepspeed": "zero3.json"}, {"teacher": {"model": "m", "sharded": False}}, None),
        (
            {},
            {"teacher": {"model": "m", "sharded": True}, "on_policy": {"seq_kd": True}},
            "would have to write equally many tokens",
        ),
        (
            {"val_set_size": 0.1},
            {"teacher": {"model": "m", "sharded": True}, "on_policy": {"evaluate": 4}},
            "would have to write equally many batches",
        ),
    ],
)
def test_a_live_teacher_beside_a_spread_student(cfg, spread, distill, message):
    given = DictDefault({**cfg, **LORA, **spread})
    if message is None:
        check_config(given, parse_distill(distill))
        return
    with pytest.raises(ConfigError, match=message):
        check_config(given, parse_distill(distill))


@pytest.mark.parametrize(
    "more, key",
    [
        ({"quantization": "4bit"}, "quantization"),
        ({"device_map": "auto"}, "device_map"),
        ({"server": {"base_url": "http://127.0.0.1:1/v1"}}, "server"),
    ],
)
def test_what_cannot_be_shared_by_processes(more, key):
    with pytest.raises(ConfigError, match=f"sharded.*is read without `{key}` only"):
        parse_distill({"teacher": {"model": "m", "sharded": True, **more}})


@pytest.mark.parametrize("teacher", ["nowhere/teacher", "self", "store"])
def test_a_model_that_is_loaded_but_not_trained_is_left_alone(cfg, teacher, tiny_model, tmp_path):
    """As `axolotl inference` and `merge-lora` load it: teacher and store may be gone."""
    cfg.distill, cfg.adapter = {"teacher": teacher}, "lora"
    cfg.datasets[0]["path"] = str(tmp_path / "gone")
    model = tiny_model()
    DistillPlugin().post_model_load(cfg, model)
    assert "forward" not in vars(model)


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
    block = {"teacher": "t", "output": "o", "k": 8, "temperatures": [1.0, 4.0]}
    with pytest.raises(ConfigError, match=r"temperature: 2.*capture.temperatures"):
        check_config(cfg, args(capture=block))
    check_config(cfg, args(capture=block, support="renormalize"))


def test_fitting_store_is_accepted(cfg, store):
    assert list(stores_findings(cfg, args())) == []
    assert [s.path for s in open_stores(cfg.datasets)] == [store]


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


def test_all_that_is_wrong_is_found_at_once(cfg, store):
    cfg.use_dft, cfg.cut_cross_entropy = True, True
    cfg.tensor_parallel_size, cfg.save_strategy = 2, None
    found = list(config_findings(cfg, args()))
    assert [(finding.key, finding.error) for finding in found] == [
        ("use_dft", ConfigError),
        ("cut_cross_entropy", None),
        ("tensor_parallel_size", ConfigError),
    ]
    assert all(finding.seen and finding.expected and finding.remedy for finding in found)
    cfg.train_on_inputs = True
    found = list(stores_findings(cfg, args(temperature=3.0)))
    assert [finding.key for finding in found] == ["train_on_inputs", "distill.temperature"]


def test_verify_says_all_of_it(tmp_path, config, store):
    config = {**BASE, **config, "use_dft": True, "expert_parallel_size": 2}
    config["distill"] = {"alpha": 0.5, "temperature": 3.0}
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    done = distill_here("verify", store, "--config", path, "--json", check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["findings"]
    keys = ["use_dft", "expert_parallel_size", "distill.temperature"]
    assert [finding["key"] for finding in found] == keys
    assert {finding["level"] for finding in found} == {"error"}
    assert all(f"* {finding['seen']}" in done.stderr for finding in found)
    # What Axolotl takes up is held against tokenizer and student too.
    for key in keys[:2]:
        del config[key]
    path.write_text(yaml.safe_dump({**config, "train_on_inputs": True}))
    done = distill_here("verify", store, "--config", path, "--json", check=False)
    found = json.loads(done.stdout)["findings"]
    assert [finding["key"] for finding in found] == ["train_on_inputs", "distill.temperature"]
    path.write_text(yaml.safe_dump({**config, "distill": {"alpha": 0.5}}))
    done = distill_here("verify", store, "--config", path, "--json")
    assert json.loads(done.stdout)["findings"] == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("distill: {alpha: 0.5, temperature: 2.0, temperature: 3.0}", "`temperature` is there"),
        ("distill: {temperature: 2.0, capture: {teacher: t, output: o, k: 010}}", "'010'"),
        ("distill: {temperature: 2.0, capture: {teacher: {model: t, trust_remote_code: yes}, "
         "output: o}}", "must be true or false (got 'yes')"),
        ("distill: {temperature: 2.0}\nlora_r: 8\nlora_r: 16", "`lora_r` is there already"),
    ],
)  # fmt: skip
def test_the_file_itself_is_read_when_the_plugin_is_registered(tmp_path, cfg, written, said):
    """Axolotl reads `yes` as true and 010 as eight, and the last of two keys."""
    path = tmp_path / "config.yml"
    path.write_text(written)
    held = DictDefault({**cfg, **yaml.safe_load(written), "axolotl_config_path": str(path)})
    with pytest.raises(ConfigError) as refused:
        DistillPlugin().register(held)
    assert said in str(refused.value)


def test_what_the_command_line_put_right_stays(tmp_path, cfg):
    path = tmp_path / "config.yml"
    path.write_text("distill: {alpha: yes, temperature: 1e-1, support: renormalize}")
    held = DictDefault({**cfg, "axolotl_config_path": str(path)})
    held.distill = {"alpha": 0.25, "temperature": "1e-1", "support": "renormalize"}
    DistillPlugin().register(held)
    assert held.distill.alpha == 0.25 and held.distill.temperature == 0.1


def test_the_home_folder_in_a_datasets_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    entry = {"path": "~/chats.jsonl", "type": "chat_template"}
    resolve_types([entry])
    assert entry["path"] == "/home/ann/chats.jsonl"


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
        block = yaml.safe_load(text)["distill"]
        assert parse_distill(block) and checked.distill.keys() >= block.keys()
        if "teacher" not in block:
            assert checked.datasets[0].type == "axolotl_distill.host.datasets.store"


def test_the_schema_of_the_block():
    """`axolotl config-schema` takes nothing from plugins, so there is a command of ours."""
    block = json.loads(distill_here("schema").stdout)["distill"]
    assert set(block["properties"]) == set(DistillArgs.model_fields)
    assert block["properties"]["temperature"]["default"] == 1.0
