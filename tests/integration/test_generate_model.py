"""The generate command with a model in this process: tiny ones, and the real SmolLM2."""

import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.cli import distill
from axolotl_distill.trajectories import read_trajectories

QUESTIONS = [
    "What is 2+2?",
    "Name the capital of France.",
    "Tell me a long story about a fox, its den, and the river beside it.",
    "Hi",
    "List three colours, and say which of them you like best and why.",
]


@pytest.fixture
def generate(tmp_path):
    """Runs the command for a local model and gives its rows by (question, sample)."""

    def run(model, name="out", questions=QUESTIONS, options=(), code=0, **keys):
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
        recipe = {
            "teacher": {"model": str(model), "dtype": "float32", "device": "cpu"},
            "generate": {
                "prompts": str(prompts),
                "output": str(tmp_path / name),
                "max_tokens": 12,
                **keys,
            },
        }
        path = tmp_path / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe))
        done = CliRunner().invoke(distill, ["generate", str(path), *options])
        assert done.exit_code == code, done.output
        if code:
            return done.output
        rows = {}
        for row in read_trajectories(tmp_path / name):
            rows[row["messages"][-1]["content"], row["sample"]] = row
        return rows

    return run


def prompt_ids(tokenizer, row):
    text = tokenizer.apply_chat_template(
        row["messages"], tokenize=False, add_generation_prompt=True
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ids_of(row):
    return [int(entry["token"].removeprefix("token_id:")) for entry in row["logprobs"]]


def check_logprobs(folder, rows, k, dtype=torch.float64):
    """Against one forward pass a row, unpadded; the bound is fp32's, with other reductions."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for row in rows:
        before, written = prompt_ids(tokenizer, row), ids_of(row)
        assert row["usage"] == {
            "prompt_tokens": len(before),
            "completion_tokens": len(written),
        }
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + written])).logits[0]
        exact = logits[len(before) - 1 : -1].double().log_softmax(-1)
        for step, entry in zip(exact, row["logprobs"], strict=True):
            ids = [int(e["token"].removeprefix("token_id:")) for e in entry["top_logprobs"]]
            got = torch.tensor([e["logprob"] for e in entry["top_logprobs"]], dtype=torch.float64)
            assert len(ids) == k and (got.diff() <= 0).all()
            assert (got - step[ids]).abs().max() < 1e-4
            assert (got - step.topk(k).values).abs().max() < 1e-4
            own = int(entry["token"].removeprefix("token_id:"))
            assert abs(entry["logprob"] - step[own].item()) < 1e-4
            assert entry["bytes"] is None
        assert tokenizer.decode(written, skip_special_tokens=True) == row["content"]


def test_logprobs_are_the_models_own(generate, tiny_llama_dir):
    """Left-padded batches, top-p and temperature: the kept log-probabilities know none of them."""
    keys = {"temperature": 0.5, "top_p": 0.9, "extra": {"repetition_penalty": 1.3, "min_p": 0.01}}
    rows = generate(tiny_llama_dir, n=2, logprobs=5, batch_size=7, **keys)
    assert len(rows) == 10
    check_logprobs(tiny_llama_dir, rows.values(), 5)
    assert any(
        entry["token"] != entry["top_logprobs"][0]["token"]
        for row in rows.values()
        for entry in row["logprobs"]
    )


def test_draws_do_not_depend_on_the_batch(generate, tmp_path, tiny_llama_dir):
    """The same rows from other batches, in another order, and after half of them are lost."""
    keys = {"n": 2, "temperature": 1.0}
    first = generate(tiny_llama_dir, "a", batch_size=10, **keys)
    alone = generate(tiny_llama_dir, "b", batch_size=1, questions=QUESTIONS[::-1], **keys)
    assert {key: row["content"] for key, row in first.items()} == {
        key: row["content"] for key, row in alone.items()
    }
    assert len({row["content"] for row in first.values()}) == 10
    part = tmp_path / "a" / "part-00000.jsonl"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[::2]))
    assert generate(tiny_llama_dir, "a", batch_size=4, **keys) == first
    other = generate(tiny_llama_dir, "c", seed=1, **keys)
    assert all(other[key]["content"] != first[key]["content"] for key in first)


def test_temperature_decides(generate, tiny_llama_dir):
    """0 is greedy, and so is top_k 1; a high one is not; the 50 tokens that transformers would
    cut to by itself do not hold."""
    greedy = generate(tiny_llama_dir, "a", temperature=0.0)
    narrow = generate(tiny_llama_dir, "b", temperature=1.0, extra={"top_k": 1})
    assert {k: r["content"] for k, r in greedy.items()} == {
        k: r["content"] for k, r in narrow.items()
    }
    wild = generate(tiny_llama_dir, "c", temperature=50.0, logprobs=50)
    outside = [
        entry["token"] not in {e["token"] for e in entry["top_logprobs"]}
        for row in wild.values()
        for entry in row["logprobs"]
    ]
    assert sum(outside) > len(outside) / 2


def test_smollm2_ends_where_it_means_to(generate, smollm2_dir):
    """The real model: greedy text is transformers' own, stops at its end token, and is plain."""
    questions = ["What is 2+2?", "Write a poem about the sea and the moon."]
    rows = generate(smollm2_dir, questions=questions, temperature=0.0, max_tokens=18, logprobs=4)
    check_logprobs(smollm2_dir, rows.values(), 4, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    ends = set()
    for row in rows.values():
        before = torch.tensor([prompt_ids(tokenizer, row)])
        plain = model.generate(
            before,
            attention_mask=torch.ones_like(before),
            do_sample=False,
            max_new_tokens=18,
            pad_token_id=tokenizer.pad_token_id,
        )[0, before.shape[1] :].tolist()
        assert ids_of(row) == plain
        ended = plain[-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("stop" if ended else "length")
        assert "<|im_end|>" not in row["content"]
        ends.add(row["finish_reason"])
    assert ends == {"stop", "length"}


def test_what_cannot_be_asked(generate, tmp_path, tiny_llama_dir):
    said = generate(tiny_llama_dir, code=1, max_tokens=600)
    assert "refused every request" in said
    failed = list(read_trajectories(tmp_path / "out" / "failed"))
    assert len(failed) == 5 and "512 positions" in failed[0]["reason"]
    said = generate(tiny_llama_dir, "b", code=1, extra={"top_kk": 3})
    assert "`top_kk`" in said and "does not take" in said and "Loading weights" not in said
    said = generate(tiny_llama_dir, "b", code=1, extra={"stop_strings": ["."], "max_length": 9})
    assert "`max_length`, `stop_strings`, which this package sets itself" in said
    said = generate(tiny_llama_dir, "c", code=1, max_tokens=None)
    assert "`generate.max_tokens` is needed" in said
    assert "cannot be loaded" in generate(tmp_path / "nowhere", "d", code=1)


def test_a_prompt_that_the_template_refuses(generate, tmp_path, tiny_model):
    folder = tmp_path / "strict"
    model = tiny_model()
    model.save_pretrained(folder)
    strict = "{% if messages[0]['content'] == 'Hi' %}{{ raise_exception('say more') }}{% endif %}"
    model.tokenizer.chat_template = strict + model.tokenizer.chat_template
    model.tokenizer.save_pretrained(folder)
    assert len(generate(folder)) == 4
    (failed,) = read_trajectories(tmp_path / "out" / "failed")
    assert failed["messages"][-1]["content"] == "Hi" and "say more" in failed["reason"]


def test_the_budget_holds_here_too(generate, tiny_llama_dir):
    rows = generate(tiny_llama_dir, n=5, batch_size=2, budget={"tokens": 1500})
    spent = sum(sum(row["usage"].values()) for row in rows.values())
    assert 700 < spent <= 1500 and len(rows) < 25
    rows = generate(tiny_llama_dir, "b", n=5, batch_size=25, budget={"tokens": 1500})
    assert 1 < len(rows) < 25, "a batch that does not fit whole is asked in part"
