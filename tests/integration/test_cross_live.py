"""The real Axolotl with a teacher that has another tokenizer and answers while the student
trains: what is learnt is what a capture would have stored."""

import shutil

import pytest
import yaml
from support.axolotl_run import BASE, Plan, run_axolotl, run_fleet
from support.cli import distill_here
from support.crossed import CHATS, mistral_student, smollm2_teacher, write_chats
from support.strategies import LORA, shared_by
from transformers import AutoTokenizer

pytestmark = pytest.mark.axolotl

SHARED = {"max_steps": 4, "learning_rate": 1e-2, "adam_epsilon": 1e-3}
PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory):
    return mistral_student(tmp_path_factory.mktemp("models") / "tiny-mistral")


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, tiny_model):
    return smollm2_teacher(tmp_path_factory.mktemp("models") / "teacher", tiny_model)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats") / "chats.jsonl", CHATS)


@pytest.fixture
def live(student_dir, teacher_dir, chats):
    cross = {"method": "span", "k": 16}
    return {
        **SHARED,
        "base_model": str(student_dir),
        "distill": {"teacher": str(teacher_dir), "cross_tokenizer": cross},
        "datasets": [{"path": str(chats), "type": "chat_template"}],
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory, student_dir, teacher_dir, chats):
    folder = tmp_path_factory.mktemp("captured")
    values = {
        **BASE,
        "base_model": str(student_dir),
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
        "distill": {
            "cross_tokenizer": {"method": "span"},
            "capture": {
                "teacher": str(teacher_dir),
                "output": str(folder / "store"),
                "datasets": [{"path": str(chats), "type": "chat_template"}],
                "k": 16,
            },
        },
        "datasets": [{"path": str(folder / "store"), "type": "axolotl_distill.store"}],
    }
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(values))
    distill_here("capture", path)
    return folder / "store"


@pytest.mark.parametrize("how", [pytest.param("padded", marks=pytest.mark.slow), "packed"])
def test_live_is_what_a_capture_stores(tmp_path, live, store, how):
    """Step by step the same loss, of the same records; accumulated, and evaluated."""
    shape = {**(PACKED if how == "packed" else {}), "gradient_accumulation_steps": 2}
    if how == "packed":
        shape |= {"val_set_size": 2, "eval_steps": 2}
    stored = {
        **live, **shape, "distill": {}, "datasets": [
            {"path": str(store), "type": "axolotl_distill.store"}
        ],
    }  # fmt: skip
    beside = run_axolotl(tmp_path / "live", {**live, **shape})
    before = run_axolotl(tmp_path / "store", stored)
    assert len(beside.steps) == 4
    for key in ("loss", "grad_norm", "distill/kl", "distill/teacher_mass"):
        assert beside.column(key) == pytest.approx(before.column(key), rel=2e-3), key
    for seen, expected in zip(beside.evaluations, before.evaluations, strict=True):
        assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-3)
    assert bool(beside.evaluations) == (how == "packed")
    assert "another tokenizer" not in before.log and "its own tokenizer" in beside.log


@pytest.mark.slow
@pytest.mark.parametrize("method", ["span", "gold"])
def test_two_processes_are_one(tmp_path, live, method):
    live["distill"]["cross_tokenizer"] = {"method": method}
    shared = {**live, "curriculum_sampling": True}
    shared["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    plans = {str(n): Plan({**shared, **shared_by(n, 2)}, n) for n in (1, 2)}
    one, two = run_fleet(tmp_path, plans).values()
    assert one.code == two.code == 0 and two.inside[0]["processes"] == 2
    for key in ("loss", "grad_norm", "distill/kl" if method == "span" else "distill/gold"):
        ones, twos = ([step[key] for step in run.inside[0]["steps"]] for run in (one, two))
        assert twos == pytest.approx(ones, rel=2e-3), key


def test_what_is_refused(tmp_path, live, teacher_dir, store):
    """A row that the teacher's template rewrites, before training; a store, which is no text."""
    trims = tmp_path / "trims"
    shutil.copytree(teacher_dir, trims)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + "
        "'<|im_end|>' + '\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(trims)
    rows = write_chats(tmp_path / "rows.jsonl", [*CHATS, ("Who goes there?", "A friend.  \n")])
    config = {**live, "datasets": [{"path": str(rows), "type": "chat_template"}]}
    config["distill"] = {**live["distill"], "teacher": str(trims)}
    run = run_axolotl(tmp_path / "row", config, check=False)
    said = " ".join(run.log.split())
    assert run.code and "The row of the training set that begins '<s>[INST] Who goes" in said
    assert "its text is not the same" in said and not run.steps

    config["datasets"] = [{"path": str(store), "type": "axolotl_distill.store"}]
    run = run_axolotl(tmp_path / "stored", config, check=False)
    assert run.code and "is a store, whose rows are tokens" in " ".join(run.log.split())


@pytest.mark.parametrize(
    "block",
    [
        {"method": "gold"},
        pytest.param({"method": "uld"}, marks=pytest.mark.slow),
        # To two untrained models every piece is as unlikely; a temperature tells them apart.
        pytest.param(
            {"method": "alm", "threshold": 0.01, "binarization_temperature": 20.0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda block: block["method"],
)
def test_other_methods_beside_the_teacher(tmp_path, live, block):
    """LoRA, packed, accumulated and evaluated: what the teacher says is learnt."""
    changes = {**LORA, **PACKED, "gradient_accumulation_steps": 2, "max_steps": 8}
    changes |= {"val_set_size": 2, "eval_steps": 4, "learning_rate": 2e-2}
    changes["distill"] = {**live["distill"], "cross_tokenizer": block, "alpha": 1.0}
    run = run_axolotl(tmp_path, {**live, **changes})
    name = block["method"]
    losses = run.column(f"distill/{name}")
    assert sum(losses[-2:]) < sum(losses[:2]), losses
    assert 0.5 < run.steps[0]["distill/paired"] <= 1
    assert f"eval_distill/{name}" in run.evaluations[-1] and "distill/ce" in run.steps[0]
