"""What the student writes while it trains: whole, its own, and learnt as the teacher grades it."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from axolotl.utils.collators import (
    DataCollatorForSeq2Seq,
    V2BatchSamplerDataCollatorForSeq2Seq,
)
from peft import LoraConfig, get_peft_model
from support.live import IGNORE, another, attach, by_formula, live, packed, padded, texts
from support.model_types import VOCAB, tiny
from transformers import GenerationConfig

from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.rollout.repack import Prompt, prompts_of, repacked
from axolotl_distill.rollout.step import OnPolicy
from axolotl_distill.rollout.writer import Completion, Writer, stop_tokens
from axolotl_distill.teachers.itself import evaluating

TEXTS = texts([17, 9, 24, 5])
PROMPTS = [text["input_ids"][: len(text["input_ids"]) // 3] for text in TEXTS]
EOS = 2


def writer(model=None, *, stop=(EOS,), pad=EOS, context=60, reads=None, **args):
    model = model or tiny("llama")

    @contextmanager
    def as_author():
        with evaluating(model):
            yield

    given = OnPolicyArgs(**{"max_new_tokens": 12, **args})
    return Writer(model, as_author, given, stop, pad, context, reads or (lambda token: True))


def eager_for(model, token, bonus):
    """A head that likes one token more."""
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
    with torch.no_grad():
        model.lm_head.bias[token] = bonus
    return model


@pytest.mark.parametrize("batch", [packed(TEXTS), padded(TEXTS), padded(TEXTS, left=True)])
def test_prompts_are_what_comes_before_the_learnt_tokens(batch):
    assert [prompt.ids for prompt in prompts_of([batch])] == PROMPTS


def test_of_several_turns_the_last_is_written_anew():
    batch = padded([TEXTS[2], TEXTS[0]])
    batch["shift_labels"][0, 12:16] = IGNORE
    batch["shift_labels"][1] = IGNORE
    assert [prompt.ids for prompt in prompts_of([batch])] == [TEXTS[2]["input_ids"][:17]]


def test_one_seed_is_one_text_and_no_other_draw():
    author = writer()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = author.write(PROMPTS, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert first == writer().write(PROMPTS, seed=5) != writer().write(PROMPTS, seed=6)
    assert all(1 <= len(completion.ids) <= 12 for completion in first)


def test_a_prompt_is_answered_alone_as_among_others():
    """Left padding changes nothing: the likeliest token each time."""
    among = writer(top_k=1).write(PROMPTS, seed=0)
    for prompt, completion in zip(PROMPTS, among, strict=True):
        assert writer(top_k=1).write([prompt], seed=1) == [completion]
        model = tiny("llama")
        ids = list(prompt)
        for token in completion.ids:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            assert token == logits[0, -1].argmax().item()
            ids.append(token)


def test_the_cache_is_on_and_dropout_off_whatever_training_needs():
    model = tiny("llama")
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.train()
    model.model.norm.eval()
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: torch.nn.functional.dropout(output, 0.5, module.training)
    )
    seen = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    completions = writer(model).write(PROMPTS, seed=5)
    assert seen[0] == max(map(len, PROMPTS)) and set(seen[1:]) == {1}
    assert completions == writer().write(PROMPTS, seed=5)
    assert model.training and model.model.layers.training and not model.model.norm.training


def test_the_end_is_learnt_though_it_is_the_padding_too():
    model = eager_for(tiny("llama"), EOS, 4.0)
    completions = writer(model, max_new_tokens=40, context=200).write(PROMPTS * 3, seed=1)
    assert {completion.finished for completion in completions} == {True}
    for completion in completions:
        assert completion.ids.count(EOS) == 1 and completion.ids[-1] == EOS
    # And it is no end where the model did not write it: no prompt's padding is one.
    never = eager_for(tiny("llama"), EOS, -1e4)
    assert not any(c.finished for c in writer(never).write(PROMPTS, seed=1))


def test_a_completion_of_nothing_but_the_end():
    model = eager_for(tiny("llama"), EOS, 1e4)
    assert writer(model).write(PROMPTS, seed=1) == [Completion([EOS], True)] * len(PROMPTS)


def test_no_more_is_written_than_there_is_room_for():
    model = eager_for(tiny("llama"), EOS, -1e4)
    completions = writer(model, context=10).write(PROMPTS, seed=1)
    assert [len(c.ids) for c in completions] == [10 - len(prompt) for prompt in PROMPTS]
    assert not any(completion.finished for completion in completions)


HABITS = {
    "penalties": {"repetition_penalty": 9.0, "encoder_repetition_penalty": 3.0},
    "warpers": {"top_k": 2, "min_p": 0.3, "temperature": 0.1, "typical_p": 0.2, "top_h": 0.3},
    "never": {"suppress_tokens": list(range(3, 60)), "bad_words_ids": [[n] for n in range(60, 80)]},
    "first": {"begin_suppress_tokens": list(range(3, 80)), "forced_bos_token_id": 9},
    "last": {"forced_eos_token_id": EOS, "min_new_tokens": 11},
    "longer": {"exponential_decay_length_penalty": (1, 9.0), "min_length": 30},
    "biased": {"sequence_bias": [[[9], 50.0]], "no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3, "length_penalty": 5.0},
    "many": {"num_return_sequences": 2, "do_sample": True},
    "guided": {"guidance_scale": 3.0},
}


@pytest.mark.parametrize("within", [False, True], ids=["bare", "peft"])
@pytest.mark.parametrize("habits", HABITS)
def test_the_model_s_own_habits_are_not_the_student(habits, within):
    """Nor are they lost: whoever else lets it write finds them again."""
    model = tiny("llama")
    own = GenerationConfig(**HABITS[habits])
    model.generation_config = own
    author = get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if within else model
    assert writer(author).write(PROMPTS, seed=5) == writer().write(PROMPTS, seed=5)
    assert model.generation_config is own and author.generation_config is own
    assert "generation_config" not in vars(author) or author is model


def test_the_model_s_own_habits_are_there_after_an_error():
    model = tiny("llama")
    own = GenerationConfig(suppress_tokens=[5])
    author = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    author.generation_config = model.generation_config = own
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer(author).write(PROMPTS, seed=5)
    assert model.generation_config is own and vars(author)["generation_config"] is own


def test_a_token_that_only_one_of_them_has_cuts_it_off():
    whole = writer().write(PROMPTS, seed=5)
    odd = whole[0].ids[3]
    cut = writer(reads=lambda token: token != odd).write(PROMPTS, seed=5)
    assert cut[0].ids == whole[0].ids[: whole[0].ids.index(odd)] and not cut[0].finished


def test_stop_tokens(tokenizer):
    model = tiny("llama")
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id]
    assert stop_tokens(model, tokenizer) == (7, tokenizer.eos_token_id)
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no completion would ever end"):
        stop_tokens(model, tokenizer)


def collator(tokenizer, is_packed):
    base = V2BatchSamplerDataCollatorForSeq2Seq if is_packed else DataCollatorForSeq2Seq
    return TeacherCollator(
        tokenizer, base_cls=base, packed=is_packed, stores=[], temperature=1.0, return_tensors="pt"
    )


def step(tokenizer, is_packed=False, rank=0, **args):
    """As many steps as wanted: the student of `writer`, and a teacher that writes."""
    return OnPolicy(
        args=OnPolicyArgs(**{"lmbda": 1.0, "max_new_tokens": 12, **args}),
        student=writer(**args),
        teacher=writer(another(), **args) if args.get("seq_kd") else None,
        collate=collator(tokenizer, is_packed),
        packed=is_packed,
        sequence_len=60,
        seed=4,
        rank=rank,
        decode=str,
        warn=print,
        device=torch.device("cpu"),
    )


def learnt(batches):
    return sum(int((batch["shift_labels"] != IGNORE).sum()) for batch in batches)


BATCHES = {
    False: [padded(TEXTS[:2]), padded(TEXTS[2:])],
    True: [packed(TEXTS[:2]), packed(TEXTS[2:])],
}


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
def test_as_many_micro_batches_of_the_student_s_own_text(tokenizer, is_packed):
    made = step(tokenizer, is_packed).replace(BATCHES[is_packed], 1)
    expected = step(tokenizer).student.write(PROMPTS, step(tokenizer)._seed(1))
    assert len(made) == 2 and learnt(made) == sum(len(c.ids) for c in expected)
    found = prompts_of(made)
    assert sorted(p.ids for p in found) == sorted(PROMPTS)
    # The targets are what was written, each at the position before it.
    written = []
    for batch in made:
        targets = batch["shift_labels"]
        written += targets[targets != IGNORE].tolist()
        at = (targets != IGNORE).nonzero()
        assert torch.equal(targets[targets != IGNORE], batch["input_ids"][at[:, 0], at[:, 1] + 1])
    assert sorted(written) == sorted(token for c in expected for token in c.ids)
    if is_packed:
        assert all(batch["attention_mask"].max() == 2 for batch in made)


def test_its_loss_is_divided_by_the_tokens_that_were_written(tokenizer):
    """And is the formula on what was written, however it is cut."""
    on_policy = step(tokenizer)
    written = on_policy.student.write(PROMPTS, on_policy._seed(1))
    documents = [
        {"input_ids": prompt + c.ids, "labels": [IGNORE] * len(prompt) + c.ids}
        for prompt, c in zip(PROMPTS, written, strict=True)
    ]
    given = {"divergence": "reverse_kl", "alpha": 1.0}
    expected = by_formula(tiny("llama"), another(), documents, DistillArgs(teacher="m", **given))
    for batches in (BATCHES[False], [padded(TEXTS)], [padded([text]) for text in TEXTS]):
        made = step(tokenizer).replace(batches, 1)
        student = tiny("llama")
        attach(student, live(another()), **given)
        loss = sum(student(**b, num_items_in_batch=torch.tensor(learnt(made))).loss for b in made)
        assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
def test_a_micro_batch_has_a_mask_where_the_data_s_has_one(tokenizer, is_packed):
    """With sdpa Axolotl leaves it out of packed rows: beside one, documents see each other."""
    mask = "attention_mask"
    bare = [{k: v for k, v in batch.items() if k != mask} for batch in BATCHES[is_packed]]
    if is_packed:
        made = step(tokenizer, is_packed).replace(bare, 1)
        assert all(mask not in batch and "position_ids" in batch for batch in made)
    made = step(tokenizer, is_packed).replace(BATCHES[is_packed], 1)
    assert all(mask in batch for batch in made)


def test_what_finds_no_room_is_counted():
    batches = BATCHES[True]
    written = [(Prompt(0, [5] * 50), Completion([6] * 10, False))] * 4
    seen = []
    repacked(batches, written, lambda rows: seen.append(rows) or {}, packed=True, sequence_len=60)
    assert [len(rows[0]) for rows in seen] == [1, 1]
    made, placed = repacked(batches, written, lambda rows: {}, packed=True, sequence_len=60)
    assert len(placed) == 2 and len(made) == 2


def test_cut_off_completions_may_be_left_out(tokenizer):
    model = eager_for(tiny("llama"), EOS, 2.5)
    for truncated in ("keep", "drop"):
        on_policy = step(tokenizer, truncated=truncated)
        on_policy.student = replace(on_policy.student, model=model)
        made = on_policy.replace(BATCHES[False], 2)
        written = on_policy.student.write(PROMPTS, on_policy._seed(2))
        kept = [c for c in written if c.finished or truncated == "keep"]
        assert 0 < len([c for c in written if c.finished]) < len(written)
        assert learnt(made) == sum(len(c.ids) for c in kept) and len(made) == 2


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
def test_completions_of_nothing_but_the_end(tokenizer, is_packed):
    """Also of prompts of one token, which is the shortest that there is; the end is learnt."""
    short = [{"input_ids": text["input_ids"], "labels": text["input_ids"]} for text in TEXTS[:2]]
    batches = [(packed if is_packed else padded)(some) for some in (short, TEXTS[2:])]
    on_policy = step(tokenizer, is_packed)
    model = eager_for(tiny("llama"), EOS, 1e4)
    on_policy.student = replace(on_policy.student, model=model)
    made = on_policy.replace(batches, 1)
    prompts = [prompt.ids for prompt in prompts_of(batches)]
    assert [len(ids) for ids in prompts[:2]] == [1, 1] and learnt(made) == len(TEXTS)
    student = tiny("llama")
    attach(student, live(another()), divergence="reverse_kl", alpha=1.0)
    items = torch.tensor(learnt(made))
    loss = sum(student(**batch, num_items_in_batch=items).loss for batch in made)
    documents = [
        {"input_ids": [*ids, EOS], "labels": [IGNORE] * len(ids) + [EOS]} for ids in prompts
    ]
    args = DistillArgs(teacher="m", divergence="reverse_kl", alpha=1.0)
    expected = by_formula(tiny("llama"), another(), documents, args)
    if is_packed:
        # Its attention is Axolotl's to keep apart; alone each document is.
        alone = padded(documents)
        loss = student(**alone).loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
def test_prompts_without_an_answer_or_longer_than_the_context(tokenizer, is_packed, capsys):
    batches = [{**batch} for batch in BATCHES[is_packed]]
    batches[0]["shift_labels"] = torch.full_like(batches[0]["shift_labels"], IGNORE)
    on_policy = step(tokenizer, is_packed)
    on_policy.student = replace(on_policy.student, context=8)
    made = on_policy.replace(batches, 1)
    assert len(made) == 2 and learnt(made) > 0
    assert [len(prompt.ids) for prompt in prompts_of(made)] == [1]
    assert "1 prompts as long as `sequence_len: 8`" in capsys.readouterr().out
    none = step(tokenizer, is_packed).replace([batches[0]], 1)
    assert len(none) == 1 and learnt(none) == 0


def test_ranks_agree_on_every_draw_and_write_texts_of_their_own(tokenizer):
    ranks = [step(tokenizer, rank=rank, lmbda=0.5) for rank in (0, 1)]
    drawn = []
    for number in range(1, 9):
        made = [rank.replace(BATCHES[False], number) for rank in ranks]
        drawn.append([rank.own_text for rank in ranks])
        same = made[0][0]["input_ids"].tolist() == made[1][0]["input_ids"].tolist()
        assert same is not ranks[0].own_text
        assert ranks[0].own_text or made[0] is BATCHES[False]
    assert [first == second for first, second in drawn] == [True] * 8
    assert {first for first, _ in drawn} == {True, False}


def test_the_teacher_writes_where_the_student_does_not(tokenizer):
    on_policy = step(tokenizer, lmbda=0.0, seq_kd=True)
    made = on_policy.replace(BATCHES[False], 1)
    expected = writer(another()).write(PROMPTS, on_policy._seed(1))
    assert not on_policy.own_text and learnt(made) == sum(len(c.ids) for c in expected)
    assert step(tokenizer, lmbda=0.0).replace(BATCHES[False], 1) is BATCHES[False]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"on_policy": {}}, "needs a teacher that grades"),
        ({"teacher": "text", "on_policy": {}}, "needs a teacher that grades"),
        ({"teacher": "m", "on_policy": {"lambda": 0.5}}, "did you mean `lmbda`"),
        ({"teacher": "m", "on_policy": {"beta": 0.5}}, "distill.divergence: jsd"),
        ({"teacher": "m", "on_policy": {"lmbda": 1.5}}, "less than or equal to 1"),
    ],
)
def test_what_cannot_be(block, said):
    with pytest.raises(ConfigError) as refused:
        parse_distill(block)
    assert said in str(refused.value)


def test_a_server_does_not_write():
    server = {"model": "m", "server": {"base_url": "http://h/v1", "engine": "vllm"}}
    with pytest.raises(ConfigError, match="cannot be asked for yet"):
        parse_distill({"teacher": server, "on_policy": {"seq_kd": True}})
