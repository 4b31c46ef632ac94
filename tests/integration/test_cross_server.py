"""A teacher with another tokenizer behind a server, as commands and in the real Axolotl."""

import pytest
import yaml
from support.axolotl_run import BASE, run_axolotl
from support.cli import distill_here
from support.crossed import CHATS, mistral_student, smollm2_teacher, write_chats
from support.faulty_server import FaultyServer
from support.model_server import ModelServer
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.store import verify_store

pytestmark = pytest.mark.axolotl

K = 16


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    return mistral_student(tmp_path_factory.mktemp("models") / "tiny-mistral")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, tiny_model):
    return smollm2_teacher(tmp_path_factory.mktemp("models") / "teacher", tiny_model)


@pytest.fixture
def url(teacher_dir):
    model = AutoModelForCausalLM.from_pretrained(teacher_dir)
    serving = ModelServer(model, AutoTokenizer.from_pretrained(teacher_dir))
    with FaultyServer(serving.handlers) as server:
        yield server.url


@pytest.fixture
def config(tmp_path, student_dir):
    """A YAML's mapping for text, without `distill`."""
    chats = write_chats(tmp_path / "chats.jsonl", CHATS)
    return {
        **BASE,
        "base_model": str(student_dir),
        "output_dir": str(tmp_path / "out"),
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "datasets": [{"path": str(chats), "type": "chat_template"}],
        "max_steps": 4,
        "learning_rate": 1e-2,
        "adam_epsilon": 1e-3,
    }


def captured(tmp_path, config, teacher, check=True):
    store = {"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}
    distill = {
        "cross_tokenizer": {"method": "span"},
        "capture": {
            "teacher": teacher, "output": store["path"], "datasets": config["datasets"], "k": K,
        },
    }  # fmt: skip
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump({**config, "distill": distill, "datasets": [store]}))
    return distill_here("capture", path, check=check), store


def test_a_store_and_a_training_beside_the_server_learn_alike(tmp_path, config, url, teacher_dir):
    teacher = {
        "model": "teacher", "tokenizer": str(teacher_dir),
        "server": {"base_url": url, "engine": "vllm"},
    }  # fmt: skip
    told, store = captured(tmp_path, config, teacher)
    manifest = verify_store(tmp_path / "store").manifest
    about = manifest.teacher
    assert about["tokenizer"] == str(teacher_dir) and not manifest.tail_estimated
    # A flat teacher: sixteen of its tokens hold next to nothing.
    assert 0.9 < about["check"]["unnamed"] < 1.0
    assert "the server does not name 0.9" in told.stdout
    assert "names the 16 likeliest tokens of a place (`capture.k`)" in told.stderr
    assert "may be off by as much. A larger `distill.capture.k`" in " ".join(told.stderr.split())
    shown = distill_here("inspect", tmp_path / "store", "--records", "0").stdout
    assert "does not name" in " ".join(shown.split())

    before = run_axolotl(tmp_path / "stored", {**config, "datasets": [store], "distill": {}})
    cross = {"method": "span", "k": K}
    live = {"teacher": teacher, "cross_tokenizer": cross, "k": K}
    beside = run_axolotl(tmp_path / "live", {**config, "distill": live})
    assert len(beside.steps) == 4
    for key in ("loss", "grad_norm", "distill/kl", "distill/teacher_mass"):
        assert beside.column(key) == pytest.approx(before.column(key), rel=2e-3), key
    assert "(`distill.k`)" in beside.log


def test_what_is_said_before_a_record_is_asked_for(tmp_path, config, url, teacher_dir, student_dir):
    """No tokenizer by the name that the server has; one that is not what is served."""
    server = {"base_url": url, "engine": "vllm"}
    told, _ = captured(tmp_path, config, {"model": "teacher", "server": server}, check=False)
    assert told.returncode == 1
    said = " ".join(told.stderr.split())
    assert "tokenizer of the teacher `teacher` cannot be read" in said
    assert "as `tokenizer` beside `server`" in said

    wrong = {"model": "teacher", "tokenizer": str(student_dir), "server": server}
    told, _ = captured(tmp_path, config, wrong, check=False)
    assert told.returncode == 1
    assert "is served with another tokenizer than" in " ".join(told.stderr.split())
