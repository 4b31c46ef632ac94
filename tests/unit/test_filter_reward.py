"""A reward model in this process: a real, tiny sequence classifier on disk."""

import json

import pytest
import torch
from support.trajectories import trajectory
from transformers import AutoModelForSequenceClassification, LlamaConfig

from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.steps.reward import RewardArgs, RewardStep, verdict_of


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, smollm2_dir):
    """Makes a classifier with so many outputs, saved with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    def make(outputs):
        folder = tmp_path_factory.mktemp("reward")
        tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_labels=outputs,
        )
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            model.score.weight.mul_(40.0)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, model.eval(), tokenizer

    return make


def judge(folder, rows, **values):
    step = RewardStep(RewardArgs(model=str(folder), device="cpu", **values))
    return list(step.judge(iter(rows)))


ROWS = [trajectory(n, content=f"<think>\nHm.\n</think>\n\nIt is {'so ' * n}{n}.") for n in range(7)]


def expected(model, tokenizer, row, of):
    """One row alone, without padding: what the batched step must equal."""
    answer = row["content"] if of == "all" else row["content"].rpartition("\n\n")[2]
    chat = [*row["messages"], {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


@pytest.mark.parametrize("of", ["answer", "all"])
def test_one_output(classifier, of):
    folder, model, tokenizer = classifier(1)
    found = judge(folder, ROWS, of=of, batch_size=3, min_score=0.0)
    scores = [expected(model, tokenizer, row, of).item() for row in ROWS]
    assert [v.score for v in found] == pytest.approx(scores, abs=1e-4)
    assert [v.keep for v in found] == [score >= 0 for score in scores]
    assert max(scores) - min(scores) > 0.1


def test_several_outputs(classifier):
    folder, model, tokenizer = classifier(3)
    found = judge(folder, ROWS[:3], label=2)
    for row, each in zip(ROWS, found, strict=False):
        probs = expected(model, tokenizer, row, "answer").softmax(-1)
        assert each.score == pytest.approx(probs[2].item(), abs=1e-5)
    with pytest.raises(ConfigError, match="3 outputs"):
        RewardStep(RewardArgs(model=str(folder)))


def test_too_long(classifier):
    folder, _, _ = classifier(1)
    rows = [trajectory(content="word " * n) for n in (5, 200, 6)]
    found = judge(folder, rows, max_tokens=100)
    assert [v.reason for v in found] == ["", "too long for the reward model", ""]


def test_no_classifier(tiny_llama_dir, tmp_path):
    """A plain language model would be given a random head, and score at random."""
    with pytest.raises(ConfigError, match=r"no trained sequence classifier.*score\.weight"):
        judge(tiny_llama_dir, ROWS[:1], label=0)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        RewardStep(RewardArgs(model=str(tmp_path / "nothing")))


def test_auto_is_a_device_that_can_be_used(classifier, monkeypatch):
    """A CUDA wheel on a machine without a GPU names an accelerator all the same."""
    folder, _, _ = classifier(1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    step = RewardStep(RewardArgs(model=str(folder)))
    assert len(list(step.judge(ROWS[:1]))) == 1


def test_no_finite_score(classifier):
    folder, model, _ = classifier(1)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    for limit in (None, 0.0):
        (found,) = judge(folder, ROWS[:1], min_score=limit)
        assert (found.keep, found.score) == (False, None)
        assert found.reason == "the reward is not a finite number" and "nan" in found.detail
    args = RewardArgs(model="r", label=1)
    assert not verdict_of([float("inf"), 0.0], args).keep


def test_a_tokenizer_with_code_of_its_own(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    folder, _, _ = classifier(1)
    (folder / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\n\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "tokenizer_class": "Own"}
    file.write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": [None, "own.Own"]}}))
    step = RewardStep(RewardArgs(model=str(folder), trust_remote_code=True))
    assert type(step.reader.tokenizer).__name__ == "Own"
