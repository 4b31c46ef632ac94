"""The real Axolotl, where the student is its own teacher."""

import json

import pytest
import torch
from support.axolotl_run import run_axolotl
from support.strategies import LORA
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.signal.documents import documents

pytestmark = pytest.mark.axolotl

PACKED = {"sample_packing": True, "attn_implementation": "sdpa", "micro_batch_size": 1}
SHOWN = "<|im_start|>system\nThe answer is eight times the number.<|im_end|>\n"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with path.open("w") as file:
        for number in range(24):
            question = {"role": "user", "content": f"What is {number} and {7 * number}?"}
            answer = {"role": "assistant", "content": f"It is {8 * number}." * (1 + number % 3)}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return path


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
def kl_by_hand(folder, batch):
    """KL(the model after `SHOWN` ‖ the model) per learnt token of a batch, document by document,
    in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    shown = AutoTokenizer.from_pretrained(folder)(SHOWN)["input_ids"]
    ids, targets = batch["input_ids"].flatten(), batch["shift_labels"].flatten()
    found = []
    for document in documents(batch):
        text, at = ids[document].tolist(), (targets[document] != -100).nonzero().flatten()
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sequence_len": 505}, "more than the 512 positions"),
        ({"distill": {"teacher": "self"}}, "or let the student as it is see more"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, config, changes, said):
    run = run_axolotl(tmp_path, {**config, **changes}, check=False)
    assert run.code and said in run.log
