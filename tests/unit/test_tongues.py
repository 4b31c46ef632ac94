"""What benchmarks/other_teachers.py measures with: a student with other tokens, and nats a byte."""

import sys
from pathlib import Path

import pytest
import torch
from support.crossed import mistral_student
from support.tokenizers import sentencepiece
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.align import Pieces

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from common import summed_up
from students.tongues import embeddings, known, sums, with_tokenizer


def test_a_token_begins_as_the_mean_of_those_that_its_text_was(tmp_path, tiny_llama_dir):
    old = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    tokenizer, others = AutoTokenizer.from_pretrained(tiny_llama_dir), sentencepiece()
    table = old.get_input_embeddings().weight.detach()
    theirs, own = Pieces(tokenizer), Pieces(others)
    made = embeddings(table, theirs, own)
    assert made.shape == (len(others), table.shape[1])
    texts = {number: raw.decode() for number, raw in enumerate(own.bytes_of) if raw.isalpha()}
    cut = dict(zip(texts, theirs.cut([*texts.values()]), strict=True))
    for length in (1, 3):
        there = next(number for number, ids in cut.items() if len(ids) == length)
        expected = table[tokenizer(texts[there], add_special_tokens=False)["input_ids"]].mean(0)
        assert torch.allclose(made[there], expected, atol=1e-6), texts[there]
    assert torch.allclose(made[others.eos_token_id], table.mean(0), atol=1e-6)

    folder = with_tokenizer(tiny_llama_dir, others, tmp_path / "student")
    new, back = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert torch.equal(new.get_input_embeddings().weight, made) and len(back) == len(others)
    assert new.config.eos_token_id == back.eos_token_id == others.eos_token_id
    assert new.lm_head.weight.shape[0] == len(others)


@pytest.mark.parametrize("who", ["chatml", "inst"])
def test_an_answer_is_as_likely_as_its_tokens(tmp_path, tiny_llama_dir, who):
    """With the end of the turn and the space that a template writes before it, without what stands
    behind it; by hand in one pass."""
    folder = tiny_llama_dir if who == "chatml" else mistral_student(tmp_path / "inst")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": said}]
        for said in ("Because 7 is more than 5.", "naïve 🙂")
    ]
    found = known(model, tokenizer, chats)
    nats, tokens = 0.0, 0
    for chat in chats:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        end = text.rindex(tokenizer.eos_token)
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # This template's space before an answer is a token of its own.
        ids, answer = read["input_ids"], text.index(chat[1]["content"]) - (who == "inst")
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1).detach()
        for at, (start, stop) in enumerate(read["offset_mapping"]):
            if stop > answer and start <= end:
                nats, tokens = nats - logprobs[at - 1, ids[at]].item(), tokens + 1
    assert found.bytes == sum(len(chat[1]["content"].encode()) for chat in chats)
    assert found.tokens == tokens and found.nats == pytest.approx(nats, rel=1e-5)
    assert found.nats_a_byte == found.nats / found.bytes


def test_sums_are_right_and_always_the_same():
    made = sums(40, seed=1)
    assert made == sums(40, seed=1) != sums(40, seed=2)
    for question, answer in made:
        told, result = answer.split(" = ")
        assert question == f"What is {told}?" and eval(told) == int(result)


def test_what_is_summed_up():
    rows = [
        {"student": "a", "arm": "sft", "seed": n, "docstrings": v, "sums": v, "all": v}
        for n, v in enumerate((0.1, 0.3))
    ]
    (row,) = summed_up(rows, ("student", "arm"), ("all", "cpu_seconds"))
    assert row["seeds"] == 2 and "cpu_seconds" not in row
    assert row["all"] == {"mean": pytest.approx(0.2), "least": 0.1, "most": 0.3}
