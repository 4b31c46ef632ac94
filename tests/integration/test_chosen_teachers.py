"""The real Axolotl with several teachers, of whom a column of each row names one."""

import json

import pytest
import torch
from datasets import Dataset
from support.axolotl_run import Plan, run_axolotl, run_fleet
from support.strategies import LORA, shared_by
from transformers import AutoModelForCausalLM

from axolotl_distill.signal.documents import documents

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}
# Says how a row begins, so that a test knows by a text who is to teach it.
ASKED = {"math": "What is {n} and {n}?", "code": "Write a loop of {n} turns."}


def write_rows(path, choices=None, column="domain", longer=1, number=16):
    with path.open("w") as file:
        for n in range(number):
            domain = ("math", "code", "code")[n % 3]
            messages = [
                {"role": "user", "content": ASKED[domain].format(n=n)},
                {"role": "assistant", "content": f"It is {2 * n}." * (1 + n % 3) * longer},
            ]
            value = domain if choices is None else choices(n, domain)
            file.write(json.dumps({"messages": messages, column: value, "id": n}) + "\n")
    return path


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, tiny_model):
    """Two that differ much: the one is nearly the student."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, seed, scale in (("math", 0, 0.8), ("code", 1, 1.0)):
        model = tiny_model(seed=seed)
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        model.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def config(tiny_llama_dir, teachers, rows):
    choices = {name: str(teachers / name) for name in ("math", "code")}
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 1.0, "teacher": {"column": "domain", "choices": choices}},
        "datasets": [{"path": str(rows), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "plugins": ["axolotl_distill", "support.batch_spy.BatchSpy"],
        "max_steps": 2,
    }


@torch.no_grad()
def kl_by_hand(student_dir, teachers, tokenizer, batch):
    """{domain: KL(its teacher ‖ the student) per learnt token}, document by document in float64;
    whose a document is is told by its text."""
    models = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for name, folder in {
            "student": student_dir,
            **{name: teachers / name for name in ASKED},
        }.items()
    }
    found = {name: [] for name in ASKED}
    ids, targets = batch["input_ids"].flatten(), batch["shift_labels"].flatten()
    for document in documents(batch):
        at = (targets[document] != -100).nonzero().flatten()
        text = tokenizer.decode(ids[document])
        (own,) = [name for name, asked in ASKED.items() if asked[:8] in text]
        p, q = (
            models[name](input_ids=ids[document][None]).logits[0, at].log_softmax(-1)
            for name in (own, "student")
        )
        found[own].append((p.exp() * (p - q)).sum(-1))
    return {name: torch.cat(values).mean().item() for name, values in found.items() if values}


@pytest.mark.parametrize(
    "how",
    [*(pytest.param(how, marks=pytest.mark.slow) for how in ("padded", "packed")), "on_policy"],
)
def test_every_row_learns_from_the_teacher_that_it_names(
    tmp_path, tiny_llama_dir, teachers, tokenizer, config, how
):
    config |= {"micro_batch_size": 8} if how == "padded" else {**PACKED, "sequence_len": 256}
    if how == "on_policy":
        config |= LORA
        on_policy = {"lmbda": 1.0, "max_new_tokens": 12, "evaluate": 6}
        config["distill"] |= {"on_policy": on_policy}
        config |= {"val_set_size": 6, "eval_steps": 2}
    run = run_axolotl(tmp_path, config)
    batches = torch.load(run.output / "batches.pt")
    # An evaluation may come before the first step.
    tokens = run.steps[0]["tokens/trainable"]
    learnt = [
        b for b in batches if "shift_labels" in b and (b["shift_labels"] != -100).sum() == tokens
    ]
    expected = kl_by_hand(tiny_llama_dir, teachers, tokenizer, learnt[0])
    assert set(expected) == {"math", "code"} and expected["code"] > 3 * expected["math"]
    for name, value in expected.items():
        seen = run.steps[0][f"distill/kl/{name}"]
        assert seen == pytest.approx(value, rel=2e-3), name
        if how == "on_policy":
            assert run.steps[0][f"rollout/kl/{name}"] == seen
    assert "rows of the training set by teacher: code " in run.log
    if how == "on_policy":
        kl = run.evaluations[-1]
        assert kl["eval_rollout_kl/code"] > 3 * kl["eval_rollout_kl/math"]
        assert kl["eval_distill/kl/code"] > 3 * kl["eval_distill/kl/math"]


@pytest.mark.slow
def test_half_of_the_steps_learn_from_its_own_text_and_both_choose(tmp_path, config):
    config |= {**LORA, "max_steps": 6, "num_epochs": 8, "micro_batch_size": 8}
    config["learning_rate"] = 1e-9
    config["distill"] |= {"on_policy": {"lmbda": 0.5, "max_new_tokens": 8}}
    run = run_axolotl(tmp_path, config)
    assert {step["rollout/own_text"] for step in run.steps} == {0.0, 1.0}
    for step in run.steps:
        assert step["distill/kl/code"] > 3 * step["distill/kl/math"]
        assert ("rollout/kl/code" in step) is bool(step["rollout/own_text"])


@pytest.mark.slow
def test_two_processes_are_one(tmp_path, config, teachers):
    """A step of four rows: of two processes the one may have no row of a teacher. Shared by the
    processes, the teachers answer in both all the same."""
    config |= {"curriculum_sampling": True, "adam_epsilon": 1e-3, "max_steps": 4}
    config["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    sharded = {name: {"model": str(teachers / name), "sharded": True} for name in ("math", "code")}
    shared = {**config, "distill": {"alpha": 1.0, "teacher": {"column": "domain"}}}
    shared["distill"]["teacher"]["choices"] = sharded
    plans = {
        "one": Plan({**config, **shared_by(1, 4)}, 1),
        "two": Plan({**config, **shared_by(2, 4)}, 2),
        "shared": Plan({**shared, **shared_by(2, 4)}, 2),
    }
    one, two, both = run_fleet(tmp_path, plans).values()
    assert one.code == two.code == both.code == 0 and two.inside[0]["processes"] == 2
    for key in ("loss", "grad_norm", "distill/kl", "distill/kl/math", "distill/kl/code"):
        ones, twos, boths = (
            [step[key] for step in run.inside[0]["steps"]] for run in (one, two, both)
        )
        assert twos == pytest.approx(ones, rel=2e-3), key
        assert boths == pytest.approx(ones, rel=2e-3), key


@pytest.mark.slow
def test_prepared_rows_are_of_these_choices(tmp_path, config):
    """With one more choice the numbers of the others are new ones, whatever was prepared before;
    and a whole number in a row is what YAML writes so."""
    config |= {"max_steps": 1, "learning_rate": 1e-9, "micro_batch_size": 8}
    config["dataset_prepared_path"] = str(tmp_path / "prepared")
    first = run_axolotl(tmp_path / "first", config)
    choices = config["distill"]["teacher"]["choices"]
    more = {"aside": {"self": True, "context": "Ha!"}, **choices}
    config["distill"]["teacher"] = {"column": "domain", "choices": more}
    second = run_axolotl(tmp_path / "second", config)
    for key in ("loss", "distill/kl/math", "distill/kl/code"):
        assert second.steps[0][key] == pytest.approx(first.steps[0][key], rel=1e-5), key
    assert "no row of the training set learns from `distill.teacher.choices.aside`" in second.log
    assert "no row of the training set learns" not in first.log
    numbers = write_rows(tmp_path / "numbers.jsonl", lambda n, domain: int(domain == "code"), "is")
    config["datasets"] = [{"path": str(numbers), "type": "chat_template"}]
    by_number = {0: choices["math"], 1: choices["code"]}
    config["distill"]["teacher"] = {"column": "is", "choices": by_number}
    third = run_axolotl(tmp_path / "third", config)
    for name, number in (("math", 0), ("code", 1)):
        seen = third.steps[0][f"distill/kl/{number}"]
        assert seen == pytest.approx(first.steps[0][f"distill/kl/{name}"], rel=1e-5)


def test_what_is_refused_before_a_weight_is_read(tmp_path, config):
    def named(n, domain):
        return "Math" if n in (4, 5) else domain

    path = write_rows(tmp_path / "rows.jsonl", named)
    config["datasets"] = [*config["datasets"], {"path": str(path), "type": "chat_template"}]
    run = run_axolotl(tmp_path / "run", config, check=False)
    said = " ".join(run.log.split())
    assert run.code and "rows.jsonl, row 5: `domain` is 'Math', and none of `distill." in said
    assert "oading model" not in said


@pytest.mark.slow
def test_rows_that_are_tokens_already(tmp_path, config):
    """With a `type`, which Axolotl then does not ask: found when the rows are made."""
    ids = [list(range(3, 30 + n)) for n in range(8)]
    path = tmp_path / "tokens.parquet"
    Dataset.from_dict(
        {"input_ids": ids, "labels": ids, "attention_mask": [[1] * len(i) for i in ids]}
    ).to_parquet(path)
    config["datasets"] = [{"path": str(path), "ds_type": "parquet", "type": "chat_template"}]
    run = run_axolotl(tmp_path / "run", config, check=False)
    said = " ".join(run.log.split())
    assert run.code and "an entry of `datasets` has token ids already" in said
    assert "oading model" not in said
