"""Hidden states from `axolotl distill capture` to Axolotl's training, as a user has them."""

import json

import pytest
import yaml
from support.axolotl_run import BASE, run_axolotl
from support.cli import distill_here
from support.stores import random_rows

from axolotl_distill.store import verify_store

pytestmark = pytest.mark.axolotl


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_llama_dir, tiny_model):
    """A student of 2 layers and width 64, a teacher of 4 and 96, and rows."""
    folder = tmp_path_factory.mktemp("shared")
    teacher = tiny_model(seed=1, hidden_size=96, num_hidden_layers=4)
    teacher.save_pretrained(folder / "teacher")
    teacher.tokenizer.save_pretrained(folder / "teacher")
    rows = random_rows(teacher.tokenizer, [12 + (37 * i) % 41 for i in range(20)], seed=11)
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
    return {"folder": folder, "student": str(tiny_llama_dir), "tokens": tokens}


@pytest.fixture
def written(tmp_path, shared):
    """Writes a YAML that captures and trains."""

    def write(hidden=None, capture=None, teacher="store"):
        block = {
            "alpha": 0.0,
            "hidden_states": {"pairs": 2, "learning_rate": 0.05, **(hidden or {})},
            "capture": {
                "teacher": {"model": str(shared["folder"] / "teacher"), "dtype": "float32"},
                "output": str(tmp_path / "store"),
                "datasets": [{"path": str(shared["folder"] / "rows.jsonl"), "type": None}],
                "k": 8,
                "hidden_states": {},
                **(capture or {}),
            },
        }
        config = {
            **BASE,
            "base_model": shared["student"],
            "output_dir": str(tmp_path / "out"),
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "distill": block,
            "datasets": [{"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}],
            "curriculum_sampling": True,
            "shuffle_merged_datasets": False,
            "learning_rate": 1e-2,
            "adam_epsilon": 1e-3,
        }
        if teacher != "store":
            block |= {"teacher": teacher}
            del block["capture"]
            config["datasets"] = [{"path": str(shared["folder"] / "rows.jsonl"), "type": None}]
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(config))
        return path, config

    return write


def test_a_store_trains_what_its_teacher_would(tmp_path, shared, written):
    """Padded and in micro-batches, with gradient checkpointing; the layers are those that the same
    YAML pairs. Every step's loss is the live teacher's to the four digits that are logged."""
    path, config = written()
    said = distill_here("capture", path).stdout
    size = 2 * (2 * 96 + 4)
    told = f"hidden states of layers 1, 3 of 4, 96 numbers each as float16: {size} bytes a"
    assert told in said and said.index(told) < said.index("captured")
    store = verify_store(tmp_path / "store")
    kinds = [payload.kind for payload in store.manifest.payloads.each]
    assert kinds == ["topk", "hidden"] and store.num_records == shared["tokens"]
    assert "rms of layer" in distill_here("inspect", tmp_path / "store", "--records", 0).stdout
    distill_here("verify", tmp_path / "store", "--config", path)
    keys = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    stored = run_axolotl(tmp_path / "stored", {**config, **keys})
    _, live = written(teacher=str(shared["folder"] / "teacher"))
    alive = run_axolotl(tmp_path / "live", {**live, **keys})
    for name in ("loss", "grad_norm", "distill/hidden"):
        assert stored.column(name) == pytest.approx(alive.column(name), rel=5e-4), name


@pytest.mark.parametrize(
    "hidden, capture, said",
    [
        ({}, {"hidden_states": None}, "stores no hidden states. Add `hidden_states: {}`"),
        ({}, {"hidden_states": {"layers": [0, 4]}}, "names layer 4, and .* has 4, counted"),
        ({}, {"hidden_states": {"layers": [0, 1]}}, "needs the teacher's layers 1, 3, and .* 0, 1"),
        ({"pairs": [[0, 4]]}, {}, r"\[0, 4\] is not there"),
        ({}, {"hidden_states": {"limit": "100KB"}}, "limit` is 100 KB. Raise it"),
        ({}, {"hidden_states": {"limit": "100 kilos"}}, "must be a size"),
        ({}, {"hidden_states": {"layers": [1, 1]}}, "each once"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path, written, hidden, capture, said
):
    path, _ = written(hidden, capture)
    with pytest.raises(AssertionError, match=said):
        distill_here("capture", path)
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.slow
def test_layers_that_a_store_has_not_are_named_before_a_model_loads(tmp_path, written):
    path, _ = written()
    distill_here("capture", path)
    path, config = written({"pairs": [[0, 2], [1, 3]]})
    said = r"needs the teacher's layers 2, and .*store has 1, 3 of 4"
    with pytest.raises(AssertionError, match=said):
        distill_here("verify", tmp_path / "store", "--config", path)
    run = run_axolotl(tmp_path / "run", config, check=False)
    assert run.code and "needs the teacher's layers 2" in run.log
    assert "Loading weights" not in run.log


def test_a_store_without_them_is_named(tmp_path, written):
    path, config = written(capture={"hidden_states": None})
    del config["distill"]["hidden_states"]
    path.write_text(yaml.safe_dump(config))
    distill_here("capture", path)
    path, _ = written(capture={"hidden_states": None})
    with pytest.raises(AssertionError, match=r"has none: a record holds topk\."):
        distill_here("verify", tmp_path / "store", "--config", path)
