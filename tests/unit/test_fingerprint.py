"""Which weights a teacher has: any change of them changes their name, and nothing else does."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import synthetic

from axolotl_distill.commands.recipe import Recipe
from axolotl_distill.errors import StoreError
from axolotl_distill.generate.folder import settings_of
from axolotl_distill.store import StoreWriter
from axolotl_distill.teachers import fingerprint
from axolotl_distill.teachers.fingerprint import UNKNOWN, content_of, weights_of


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": np.arange(1000, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def other_values(folder):
    save_file({"w": np.arange(1000, dtype=np.float32)[::-1].copy()}, folder / "model.safetensors")


def another_config(folder):
    (folder / "config.json").write_text('{"model_type": "qwen2"}')


def one_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-7] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def one_more(folder):
    (folder / "pytorch_model.bin").write_bytes(b"weights")


def a_gguf(folder):
    (folder / "model.gguf").write_bytes(b"weights")


def an_adapter(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


def code(folder):
    (folder / "modeling_own.py").write_text("class Own: ...")


def in_a_folder(folder):
    (folder / "part").mkdir()
    (folder / "part" / "model-2.safetensors").write_bytes(b"weights")


CHANGES = [
    other_values, another_config, one_bit, one_more, a_gguf, an_adapter, code, in_a_folder,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen(model, change):
    before = weights_of(str(model))
    assert before.startswith("sha256:") and weights_of(str(model)) == before
    change(model)
    assert weights_of(str(model)) != before


def test_a_copy_is_the_same_teacher(model, tmp_path):
    before = weights_of(str(model))
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    os.utime(copy / "config.json")
    (copy / "README.md").write_text("a card")
    (copy / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    (copy / "optimizer.pt").write_bytes(b"moments")
    (copy / "checkpoint-10").mkdir()
    (copy / "checkpoint-10" / "model.safetensors").write_bytes(b"earlier")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in model.iterdir():
        (linked / file.name).symlink_to(file)
    assert weights_of(str(copy)) == weights_of(str(linked)) == before
    assert weights_of(f"{model}/") == before


def test_an_adapter_brings_its_base(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"low rank")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(model)})
    )
    before = weights_of(str(adapter))
    one_bit(model)
    assert weights_of(str(adapter)) != before


def test_large_files_are_sampled(model, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 1 << 20)
    file = model / "model.safetensors"
    data = bytearray(os.urandom(12 << 20))
    file.write_bytes(data)
    before, seen = weights_of(str(model)), 0
    for place in (0, 8, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        file.write_bytes(changed)
        seen += weights_of(str(model)) != before
    assert seen == 3
    # As a tensor of another checkpoint is: everything within it changed.
    data[3 << 20 : (3 << 20) + 20_000] = os.urandom(20_000)
    file.write_bytes(data)
    assert weights_of(str(model)) != before


def test_what_cannot_be_known_is_said(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights_of("/no/such/folder") == weights_of("no such name") == UNKNOWN == "not known"


def test_the_commit_of_a_name_on_the_hub(tmp_path, monkeypatch):
    """From the hub's cache, as it lies on the disk."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--org--teacher"
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert weights_of("org/teacher") == f"hub:{commit}"


def test_a_store_is_not_gone_on_with_by_other_weights(model, tmp_path):
    def header():
        about = {"name": str(model), "dtype": "auto", "weights": weights_of(str(model))}
        return synthetic.manifest(teacher=about)

    writer = StoreWriter.create_or_resume(tmp_path / "store", header())
    synthetic.fill(writer, "nucleus", 20, 50)
    writer.abandon()
    other_values(model)
    with pytest.raises(StoreError, match=rf"another `teacher`.*The files of the teacher {model}"):
        StoreWriter.create_or_resume(tmp_path / "store", header())


def test_a_generation_knows_its_weights(model):
    recipe = Recipe.model_validate(
        {
            "teacher": {"model": str(model)},
            "generate": {"prompts": [{"path": "x.jsonl"}], "output": "out"},
        }
    )
    before = settings_of(recipe.teacher, recipe.generate)
    assert settings_of(recipe.teacher, recipe.generate) == before
    one_bit(model)
    assert (
        settings_of(recipe.teacher, recipe.generate)["teacher"]["weights"]
        != before["teacher"]["weights"]
    )


def test_content_of_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n")
    before = content_of(str(tmp_path)), content_of(str(tmp_path / "a.jsonl"))
    Path(tmp_path / "a.jsonl").write_text("2\n")
    after = content_of(str(tmp_path)), content_of(str(tmp_path / "a.jsonl"))
    assert before[0] != after[0] and before[1] != after[1]
