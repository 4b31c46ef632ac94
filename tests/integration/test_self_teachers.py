"""The real Axolotl, where the student is its own teacher."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from support.axolotl_run import Plan, run_axolotl, run_fleet
from support.strategies import LORA, shared_by, zero
from support.sums import write_sums
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.signal.documents import documents

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}
SHOWN = "<|im_start|>system\nThe answer is eight times the number.<|im_end|>\n"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    return write_sums(path)


@pytest.fixture
def config(tiny_llama_dir, chats):
    return {
        "base_model": str(tiny_llama_dir),
        "distill": {"alpha": 1.0, "teacher": {"self": True, "context": SHOWN}},
        "datasets": [{"path": str(chats), "type": "chat_template"}],
        "chat_template": "tokenizer_default",
        "learning_rate": 1e-2,
        "plugins": ["axolotl_distill", "support.batch_spy.BatchSpy"],
        "max_steps": 2,
    }


@torch.no_grad()
def kl_by_hand(folder, batch, shown_of=lambda question: SHOWN):
    """KL(the model after what is shown ‖ the model) per learnt token of a batch, document by
    document, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, targets = batch["input_ids"].flatten(), batch["shift_labels"].flatten()
    found = []
    for document in documents(batch):
        text, at = ids[document].tolist(), (targets[document] != -100).nonzero().flatten()
        shown = tokenizer(shown_of(tokenizer.decode(text)))["input_ids"]
        q = model(input_ids=torch.tensor([text])).logits[0, at].log_softmax(-1)
        p = model(input_ids=torch.tensor([[*shown, *text]])).logits[0, len(shown) + at]
        p = p.log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(found).mean().item()


@pytest.mark.parametrize(
    "learns",
    [
        pytest.param("full_packed", marks=pytest.mark.slow),
        "lora_on_policy",
        "full_on_policy_packed",
    ],
)
def test_the_student_learns_what_it_would_say_of_more(tmp_path, tiny_llama_dir, config, learns):
    if "packed" in learns:
        config |= PACKED
    if "lora" in learns:
        config |= LORA
    if "on_policy" in learns:
        config["distill"] |= {"on_policy": {"lmbda": 1.0, "max_new_tokens": 12}}
    run = run_axolotl(tmp_path, config)
    batches = torch.load(run.output / "batches.pt")
    learnt = [batch for batch in batches if "shift_labels" in batch]
    expected = kl_by_hand(tiny_llama_dir, learnt[0])
    assert run.steps[0]["distill/kl"] == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert expected > 0.005 and run.steps[0]["distill/teacher_mass"] == 1.0


RIGHT = "<|im_start|>system\nThe answer is {solution}.<|im_end|>\n"


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Sums with their solution beside them, of one to three repetitions."""
    path = tmp_path_factory.mktemp("solved") / "solved.jsonl"
    with path.open("w") as file:
        for n in range(24):
            question = {"role": "user", "content": f"What is {n} and {7 * n}?"}
            answer = {"role": "assistant", "content": f"It is {8 * n}."}
            row = {"messages": [question, answer], "solution": f"{8 * n}!" * (1 + n % 3)}
            file.write(json.dumps(row) + "\n")
    return path


def solution_of(question):
    """What only the teacher reads of a row, which its question tells."""
    n = int(re.search(r"What is (\d+) and", question)[1])
    return RIGHT.replace("{solution}", f"{8 * n}!" * (1 + n % 3))


@pytest.mark.parametrize(
    "learns", [pytest.param("lora", marks=pytest.mark.slow), "full_on_policy_packed"]
)
def test_each_row_s_solution_is_what_the_teacher_has_seen(
    tmp_path, tiny_llama_dir, config, solved, learns
):
    config |= PACKED if "packed" in learns else {"micro_batch_size": 4}
    config |= LORA if "lora" in learns else {}
    teacher = {"self": True, "context_column": "solution", "context": RIGHT}
    config["distill"] = {"alpha": 1.0, "teacher": teacher}
    config["datasets"] = [{"path": str(solved), "type": "chat_template"}]
    if "on_policy" in learns:
        config["distill"] |= {"on_policy": {"lmbda": 1.0, "max_new_tokens": 12}}
    run = run_axolotl(tmp_path, config)
    batches = torch.load(run.output / "batches.pt")
    learnt = [batch for batch in batches if "shift_labels" in batch]
    expected = kl_by_hand(tiny_llama_dir, learnt[0], solution_of)
    assert run.steps[0]["distill/kl"] == pytest.approx(expected, rel=1e-3, abs=2e-4)
    assert expected > 0.005 and run.steps[0]["distill/teacher_mass"] == 1.0
    assert "tokens before a text of the training set" in run.log


def weights_of(folder):
    (path,) = [p for p in folder.glob("*.safetensors") if not p.name.startswith("distill")]
    # As the model calls them, and not as PEFT saves them.
    names = {"base_model.model.": "", "lora_A.": "lora_A.default.", "lora_B.": "lora_B.default."}
    found = {}
    for name, weight in load_file(path).items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = weight.double()
    return found


@pytest.mark.parametrize(
    "kind", ["lora_on_policy", pytest.param("full_packed", marks=pytest.mark.slow)]
)
def test_an_average_is_the_formula_and_goes_on_to_the_last_bit(
    tmp_path, tiny_llama_dir, config, kind
):
    config |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "num_epochs": 4}
    config["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    config["distill"] = {"alpha": 0.8, "teacher": {"self": True, "ema": 0.6}}
    if kind == "lora_on_policy":
        config |= {**LORA, "lora_dropout": 0.3}
        config["distill"]["on_policy"] = {"lmbda": 0.7, "max_new_tokens": 12}
    else:
        config |= {**PACKED, "curriculum_sampling": True}
    whole = run_axolotl(tmp_path / "whole", {**config, "save_total_limit": 9})
    steps = [weights_of(whole.output / f"checkpoint-{n}") for n in range(1, 5)]
    kept = [
        load_file(whole.output / f"checkpoint-{n}" / "distill_teacher_average.safetensors")
        for n in range(1, 5)
    ]
    assert kept[0].keys() == steps[0].keys()
    for before, now, weights in zip(kept, kept[1:], steps[1:], strict=False):
        for name, weight in weights.items():
            expected = 0.6 * before[name].double() + 0.4 * weight
            torch.testing.assert_close(now[name].double(), expected, rtol=1e-5, atol=1e-7)
    if kind == "full_packed":
        first = load_file(tiny_llama_dir / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        expected = 0.6 * first[name].double() + 0.4 * steps[0][name]
        torch.testing.assert_close(kept[0][name].double(), expected, rtol=1e-5, atol=1e-7)
    assert not list(whole.output.glob("distill_teacher*"))
    kl = [step["distill/kl"] for step in whole.inside[0]["steps"]]
    assert abs(kl[0]) < 1e-5 < max(kl[1:])

    go_on = {"resume_from_checkpoint": str(whole.output / "checkpoint-2")}
    resumed = run_axolotl(tmp_path / "resumed", {**config, **go_on})
    assert whole.inside[0]["steps"][2:] == resumed.inside[0]["steps"]
    for name in ("distill_teacher_average.safetensors", "*model.safetensors"):
        first, second = (
            next((run.output / "checkpoint-4").glob(name)).read_bytes() for run in (whole, resumed)
        )
        assert first == second, name


@pytest.mark.slow
def test_two_processes_have_one_average(tmp_path, config):
    config |= {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    config |= {"curriculum_sampling": True, "adam_epsilon": 1e-3}
    config["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    config["distill"] = {"alpha": 0.8, "teacher": {"self": True, "ema": 0.6}}
    plans = {
        str(number): Plan({**config, **LORA, **shared_by(number, 4)}, number) for number in (1, 2)
    }
    runs = run_fleet(tmp_path, plans)
    one, two = (
        load_file(runs[name].output / "checkpoint-3" / "distill_teacher_average.safetensors")
        for name in ("1", "2")
    )
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)
    assert runs["2"].inside[0]["processes"] == 2
    kls = [[step["distill/kl"] for step in run.inside[0]["steps"]] for run in runs.values()]
    assert kls[0] == pytest.approx(kls[1], rel=5e-3, abs=1e-6) and kls[0][-1] > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["base", "now"])
def test_with_zero_2_it_teaches_what_it_does_with_ddp(tmp_path, config, weights):
    config |= {**LORA, "max_steps": 4, "adam_epsilon": 1e-3, **shared_by(2, 4)}
    config["plugins"] = ["axolotl_distill", "support.run_spy.RunSpy"]
    config["distill"]["teacher"] = {"self": True, "weights": weights, "context": SHOWN}
    config["distill"]["on_policy"] = {"lmbda": 0.5, "max_new_tokens": 12}
    plans = {"ddp": Plan(config, 2), "zero2": Plan({**config, **zero(2)}, 2, as_gpus=True)}
    runs = run_fleet(tmp_path, plans)
    for ours, other in zip(runs["zero2"].inside, runs["ddp"].inside, strict=True):
        assert ours["kind"] == "DEEPSPEED" and ours["tokens"] == other["tokens"]
        for step, like in zip(ours["steps"], other["steps"], strict=True):
            assert step == pytest.approx(like, rel=1e-4)
            assert step["distill/kl"] > 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill": {"teacher": {"self": True, "ema": 0.9}}, "relora": True}, "`relora` cannot"),
        (
            {
                "distill": {"teacher": {"self": True, "ema": 0.9}},
                "fsdp_version": 2,
                "fsdp_config": {"reshard_after_forward": True},
            },
            "cannot be combined with `distill.teacher: self`",
        ),
        ({"sequence_len": 505}, "more than the 512 positions"),
        (
            {"distill": {"teacher": {"self": True, "ema": 0.9}, "on_policy": {"evaluate": 3}}},
            "takes its prompts from the evaluation set",
        ),
        ({"distill": {"teacher": "self"}}, "or let it see more than the student does"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, config, changes, said):
    run = run_axolotl(tmp_path, {**config, **changes}, check=False)
    assert run.code and said in run.log
