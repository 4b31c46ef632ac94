"""`type: axolotl_distill.trajectories` and training on text alone, through the real Axolotl."""

import json

import pytest
import torch
from support.axolotl_run import run_axolotl
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.axolotl

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder as `axolotl distill filter` leaves it: 12 rows that think, of unlike lengths; half
    of them think inside their content, half in `reasoning_content`."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    folder.mkdir()
    rows = []
    for i in range(12):
        thinking = " ".join(WORDS[(i + k) % 10] for k in range(3 + 2 * i)) + "."
        answer = f"It is {WORDS[i % 10]}."
        turn = {"role": "assistant", "content": answer, "reasoning_content": thinking}
        if i % 2:
            content = f"<think>\n{thinking}\n</think>\n\n{answer}"
            turn = {"role": "assistant", "content": content, "reasoning_content": None}
        user = {"role": "user", "content": f"Which is number {i}?", "reasoning_content": None}
        rows.append({"id": f"p{i}-0", "messages": [user, turn]})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train-00000.jsonl").write_text(lines)
    return folder


@pytest.fixture
def text_config(tiny_llama_dir, dataset):
    return {
        "base_model": str(tiny_llama_dir),
        "special_tokens": {"eos_token": "<|im_end|>"},
        "chat_template": "chatml",
        "distill": {"teacher": "text"},
        "datasets": [
            {"path": str(dataset), "split": "train", "type": "axolotl_distill.trajectories"}
        ],
    }


SPIED = "batches.pt"
COLUMNS = ("input_ids", "labels", "shift_labels", "target_weight")


def documents_of(batch):
    """(start, end) of each document of a packed batch of one row; padding counts as one more."""
    starts = torch.nonzero(batch["position_ids"][0] == 0).squeeze(1).tolist()
    return list(zip(starts, [*starts[1:], batch["position_ids"].shape[1]], strict=True))


def thinking_text(text):
    return text.partition("<think>\n")[2].partition("\n</think>")[0]


def test_packed_and_weighed(tmp_path, text_config, tiny_llama_dir):
    """What reaches the model, decoded; and its first step is the formula, over micro-batches."""
    text_config["datasets"][0]["thinking"] = 0.25
    run = run_axolotl(
        tmp_path,
        {
            **text_config,
            "plugins": ["axolotl_distill", "support.batch_spy.BatchSpy"],
            "sample_packing": True,
            "attn_implementation": "sdpa",
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "max_steps": 1,
        },
    )
    batches = torch.load(run.output / SPIED)[:2]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    for batch in batches:
        assert not any(name.startswith("teacher") for name in batch)
        for start, end in documents_of(batch):
            ids, labels, targets, weights = (batch[k][0, start:end] for k in COLUMNS)
            assert targets[:-1].equal(labels[1:]) and targets[-1:].tolist() == [-100]
            given = targets != -100
            if not given.any():
                continue
            text, trained = tokenizer.decode(ids), tokenizer.decode(targets[given])
            # chatml ends a turn with a line break, which is nobody's label.
            assert text.rstrip("\n").endswith(trained) and trained.startswith("<think>\n")
            assert trained.endswith("<|im_end|>")
            light = tokenizer.decode(targets[weights == 0.25])
            assert light == thinking_text(text) and len(light.split()) >= 3
            assert set(weights[given].tolist()) == {0.25, 1.0} and not weights[~given].any()

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float64)
    total = weight = 0.0
    for batch in batches:
        for start, end in documents_of(batch):
            ids, _, targets, weights = (batch[k][0, start:end] for k in COLUMNS)
            logits = model(ids[None]).logits[0]
            rows = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
            total += (weights * rows).sum().item()
            weight += weights.sum().item()
    step = run.steps[0]
    assert step["loss"] == pytest.approx(total / weight, rel=2e-4)
    assert "distill/kl" not in step and step["distill/ce"] > 0


def test_text_alone_is_axolotls_own_sft(tmp_path, text_config, dataset):
    """The same rows, shuffled and padded, without our plugin: the same losses, step by step."""
    chats = tmp_path / "chats.jsonl"
    rows = [json.loads(line) for line in (dataset / "train-00000.jsonl").read_text().splitlines()]
    for row in rows:
        for turn in row["messages"]:
            thinking = turn.pop("reasoning_content")
            if thinking:
                turn["content"] = f"<think>\n{thinking}\n</think>\n\n{turn['content']}"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text_config["datasets"][0] |= {"path": str(chats)}
    ours = run_axolotl(tmp_path / "ours", text_config)
    stock = {"path": str(chats), "type": "chat_template"}
    theirs = run_axolotl(
        tmp_path / "theirs", {**text_config, "plugins": None, "distill": None, "datasets": [stock]}
    )
    assert len(ours.steps) == len(theirs.steps) == 3
    for name in ("loss", "grad_norm"):
        assert ours.column(name) == pytest.approx(theirs.column(name), rel=2e-4), name


def test_a_template_that_drops_thinking_ends_the_run(tmp_path, text_config):
    """With the message, before a weight is read."""
    text_config["chat_template"] = "deepseek_v3"
    run = run_axolotl(tmp_path, text_config, check=False)
    assert run.code != 0
    assert "The chat template `deepseek_v3`" in run.log and "`chat_template: chatml`" in run.log
    assert "Loading weights" not in run.log


@pytest.mark.slow
def test_weighed_steps_are_the_same_however_they_are_cut(tmp_path, text_config, store):
    """One batch, two micro-batches or two ranks, of unlike weights, mixed with a store's rows."""
    text_config["distill"] = {"alpha": 0.7, "temperature": 2.0}
    text_config["datasets"][0]["thinking"] = 0.25
    text_config["datasets"].append({"path": str(store), "type": "axolotl_distill.store"})
    text_config |= {"val_set_size": 4, "eval_steps": 3}
    spied = {**text_config, "plugins": ["axolotl_distill", "support.batch_spy.BatchSpy"]}
    whole = run_axolotl(tmp_path / "whole", {**spied, "micro_batch_size": 2})
    weights = torch.cat([b["target_weight"].flatten() for b in torch.load(whole.output / SPIED)])
    assert set(weights.tolist()) == {0.0, 0.25, 1.0}
    micro = {**text_config, "micro_batch_size": 1}
    split = run_axolotl(tmp_path / "split", {**micro, "gradient_accumulation_steps": 2})
    ranks = run_axolotl(tmp_path / "ranks", micro, processes=2)
    assert ranks.ranks == 2 and any("distill/kl" in step for step in whole.steps)
    for other in (split, ranks):
        for name in ("loss", "grad_norm", "distill/ce"):
            assert other.column(name) == pytest.approx(whole.column(name), rel=2e-3), name
        seen, expected = other.evaluations[-1], whole.evaluations[-1]
        assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-3)
