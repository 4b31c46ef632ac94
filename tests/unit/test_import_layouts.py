"""Every layout of log-probabilities gives the records of the model that they came from.

A tiny model scores real chats; each layout is written as its producer writes it, read back, and
held against the model's own distributions, position by position.
"""

import json
import re
import weakref

import numpy as np
import pytest
from support.layouts import (
    CHATS,
    WRITERS,
    Chat,
    K,
    axolotl_kd,
    axolotl_kd_prepared,
    axolotl_kd_v2,
    imported,
    openai_batch,
    store_of,
    trajectories,
    vllm_chat,
    vllm_completion,
    vllm_prompt,
    write,
)

from axolotl_distill.capture.imported import ImportedRows
from axolotl_distill.capture.layouts import LAYOUTS, Context
from axolotl_distill.capture.layouts.files import open_rows
from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.store.encoding import decode_logprobs, decode_tail


@pytest.fixture(scope="module")
def chats(tiny_model):
    model = tiny_model()
    return [Chat(model, *chat) for chat in CHATS]


@pytest.fixture
def context(tokenizer):
    def prompt(messages):
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    def chat(row):
        before = prompt(row["messages"][:-1])
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=False)
        # The template's last line break is no part of the turn.
        return ids[:-1], [-100] * len(before) + ids[len(before) : -1]

    return Context(tokens=TokenIds(tokenizer), prompt=prompt, chat=chat)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_records_are_the_models(tmp_path, chats, context, tokenizer, writer):
    path = write(tmp_path, [writer(chat, tokenizer) for chat in chats])
    name, rows = imported(path, context)
    assert name == WRITERS[writer]
    survey = rows.survey()
    assert survey.other_prompt == 0
    store, report = store_of(tmp_path, rows, tokenizer, survey.k)
    renormalised = LAYOUTS[name].renormalised
    start = 0
    for chat, row in zip(chats, rows, strict=True):
        assert row["input_ids"] == chat.ids
        tokens = range(1, len(chat.ids)) if writer is vllm_prompt else chat.written
        assert [t for t, label in enumerate(row["labels"]) if label != -100] == list(tokens)
        found = store.read(np.arange(start, start + len(tokens)))
        start += len(tokens)
        ids, logprobs = decode_logprobs(found.entries, len(tokenizer))
        for place, token in enumerate(tokens):
            (own, _), (true_ids, true_logprobs) = chat.own(token), chat.top(token)
            kept = int((ids[place] >= 0).sum())
            # A server may have put the sampled token in place of the K-th likeliest.
            assert kept == K or (kept == K - 1 and (writer is vllm_chat or own == true_ids[-1]))
            assert ids[place, :kept].tolist() == true_ids[:kept]
            expected = np.array(true_logprobs)
            expected -= np.logaddexp.reduce(expected) if renormalised else 0.0
            assert logprobs[place, :kept] == pytest.approx(expected[:kept], abs=1e-3)
            if not renormalised:
                left = 1.0 - np.exp(true_logprobs[:kept]).sum()
                tail = np.exp(decode_tail(found.tail[place, 0]))
                assert tail == pytest.approx(left, rel=2e-3, abs=1e-5)
    assert start == store.num_records == report.records


def test_a_shift_by_one_is_seen(tmp_path, chats, context, tokenizer):
    """As for lists that were collected where the student's logits are, one place too early."""
    rows = []
    for chat in chats:
        row = axolotl_kd_v2(chat, tokenizer)
        for name, own in (("target_token_ids", chat.ids), ("logprobs", None)):
            found = row[name]
            if own is not None:
                # A teacher that expects what comes: its own token is in every list.
                found = [[t, *ids[1:]] for t, ids in zip(own[chat.start :], found, strict=True)]
            row[name] = found[1:] + found[-1:]
        rows.append(row)
    with pytest.raises(CaptureError, match=r"the token after their own in \d+%.*shifted by one"):
        imported(write(tmp_path, rows), context)[1].survey()


def test_lists_of_another_text(tmp_path, chats, context, tokenizer):
    row = axolotl_kd(chats[0], tokenizer)
    row["llm_text_generation_vllm_logprobs"] *= 2
    with pytest.raises(CaptureError, match=r"row 1 cannot be imported.*another text"):
        imported(write(tmp_path, [row]), context)[1].survey()


def test_nulls_and_rows_without_any(tmp_path, chats, context, tokenizer):
    """A token without log-probabilities is not supervised; a row without any is passed over."""
    first, second = (axolotl_kd(chat, tokenizer) for chat in chats[:2])
    first["llm_text_generation_vllm_logprobs"][-2] = None
    rows = [first, {**second, "llm_text_generation_vllm_logprobs": [None]}, second]
    _, found = imported(write(tmp_path, rows), context)
    survey = found.survey()
    written = len(chats[0].written) + len(chats[1].written)
    assert survey.source.supervised == written - 1
    store, report = store_of(tmp_path, found, tokenizer, survey.k)
    assert (report.rows, report.skipped) == (2, 1) and store.num_records == written - 1
    assert found[0]["labels"][-2] == -100 != found[0]["labels"][-1]


def test_longer_rows_supervise_nothing(tmp_path, chats, context, tokenizer):
    path = write(tmp_path, [trajectories(chat, tokenizer) for chat in chats])
    shortest = min(len(chat.ids) for chat in chats)
    _, rows = imported(path, context, longest=shortest)
    supervised = min(len(c.written) for c in chats if len(c.ids) == shortest)
    assert rows.survey().source.supervised == supervised


def test_a_token_that_is_not_in_the_vocabulary(tmp_path, chats, context, tokenizer):
    row = trajectories(chats[0], tokenizer)
    row["logprobs"][0] = {"token": "Bonjoürstraße", "bytes": None, "logprob": -1.0}
    with pytest.raises(CaptureError, match=r"row 1.*'Bonjoürstraße'.*not in the vocabulary"):
        imported(write(tmp_path, [row]), context)[1].survey()


def renumbered(row, change):
    """The row as text, with its "token_id:…" changed."""
    text = re.sub(r"token_id:(\d+)", lambda m: f"token_id:{change(int(m[1]))}", json.dumps(row))
    return json.loads(text)


@pytest.mark.parametrize(
    ("writer", "name"),
    [(trajectories, "content"), (vllm_chat, "reasoning"), (vllm_completion, "text")],
)
def test_ids_of_another_tokenizer(tmp_path, chats, context, tokenizer, writer, name):
    """Ids that the vocabulary has, and means something else by."""
    rows = [writer(chat, tokenizer) for chat in chats]
    rows[1] = renumbered(rows[1], lambda token: (token + 1) % len(tokenizer))
    with pytest.raises(CaptureError, match=rf"row 2.*do not spell its `{name}`.*`base_model`"):
        imported(write(tmp_path, rows), context)[1].survey()


def test_a_message_that_its_tokens_do_not_spell(tmp_path, chats, context, tokenizer):
    row = openai_batch(chats[0], tokenizer)
    row["response"]["body"]["choices"][0]["message"]["content"] = chats[1].answer
    with pytest.raises(CaptureError, match="do not spell its `content`"):
        imported(write(tmp_path, [row]), context)[1].survey()


def test_ids_beyond_the_vocabulary(tmp_path, chats, context, tokenizer):
    """With and without a text to compare with; as alternatives they are a padded head's."""
    beyond = len(tokenizer)
    prepared = axolotl_kd_prepared(chats[0], tokenizer)
    prepared["input_ids"][3] = beyond
    row = vllm_completion(chats[0], tokenizer)
    row["choices"][0]["prompt_token_ids"] = [beyond, *chats[0].prompt[1:]]
    own = trajectories(chats[0], tokenizer)
    own["logprobs"][0]["token"] = f"token_id:{beyond}"
    for wrong in (prepared, row, own):
        with pytest.raises(CaptureError, match=rf"row 1.*id {beyond} is not in the vocabulary"):
            imported(write(tmp_path, [wrong]), context)[1].survey()

    padded = trajectories(chats[0], tokenizer)
    padded["logprobs"][0]["top_logprobs"][-1]["token"] = f"token_id:{beyond}"
    _, rows = imported(write(tmp_path, [padded]), context)
    store, _ = store_of(tmp_path, rows, tokenizer, rows.survey().k)
    assert store.num_records == len(chats[0].written)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("<think>\nLet me see.\n</think>\n\nYes .<|im_end|>", {"content": "Yes."}),
        (
            "Let me see.</think> Yes.<|im_end|>",
            {"content": "\n\nYes.\n", "reasoning_content": "Let me see.\n", "reasoning": None},
        ),
        ("Yes.<|im_end|>", {"content": "Yes.<|im_end|>"}),
        ("a<|im_end|>b", {"content": "ab"}),
        ("One. Two.STOP", {"text": " One. Two."}),
        ("One 🙂", {"content": "One \ufffd"}),
        ('<tool_call>{"name": "f"}</tool_call>', {"content": None, "tool_calls": [{}]}),
        ("anything", {"content": ""}),
        ("", {"content": "without log-probabilities"}),
    ],
)
def test_what_servers_do_to_text(tokenizer, written, said):
    """… is no reason to think that the tokens are another tokenizer's."""
    TokenIds(tokenizer).check_spelling(tokenizer(written)["input_ids"], said)


def test_words_are_compared_in_their_order(tokenizer):
    tokens = TokenIds(tokenizer)
    for said in ("Two. One.", "One. One.", "One. Two. Three.", "\ufffd Three."):
        with pytest.raises(ValueError, match="do not spell"):
            tokens.check_spelling(tokenizer("One. Two.")["input_ids"], {"content": said})


def test_a_template_that_refuses_a_row(tmp_path, chats, tokenizer):
    """Both that a layout may ask for: the prompt, and the whole chat."""
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"

    def refuse(row):
        tokenizer.apply_chat_template(chats[0].messages)

    context = Context(tokens=TokenIds(tokenizer), prompt=refuse, chat=refuse)
    for writer in (trajectories, axolotl_kd):
        path = write(tmp_path, [writer(chats[0], tokenizer)])
        with pytest.raises(CaptureError, match=r"row 1 .*template refuses.*roles must alternate"):
            imported(path, context)[1].survey()


def test_rows_are_read_twice_and_held_one_by_one(tmp_path, chats, context, tokenizer):
    class Held(dict):
        __hash__ = object.__hash__

    class Watched(ImportedRows):
        alive, most = weakref.WeakSet(), 0

        def __getitem__(self, index):
            row = Held(super().__getitem__(index))
            self.alive.add(row)
            self.most = max(self.most, len(self.alive))
            return row

    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    source = Counted(trajectories(chat, tokenizer) for chat in chats * 4)
    rows = Watched(source, LAYOUTS["trajectories"], context, "rows", longest=1000)
    found = rows.survey()
    about = {"fingerprint": "-", "num_rows": len(rows), "supervised": found.source.supervised}
    store_of(tmp_path, rows, tokenizer, found.k, about=about)
    assert source.reads == 2 * len(source)
    # The next one may be read before the last one is let go.
    assert rows.most <= 2


def test_names_of_tokens(tokenizer):
    """Every token is found by its bytes; text that is a part of a character is not guessed at."""
    tokens = TokenIds(tokenizer)
    text = "naïve façade\n\n\t日本語 🙂 <|im_start|>x<|im_end|>"
    for token in tokenizer(text)["input_ids"]:
        raw = {number: raw for raw, (number, *_) in tokens._by_bytes.items()}[token]
        assert tokens.find("?", list(raw)) == token
        assert tokens.find(f"token_id:{token}", [1, 2]) == token
    for token in ("<|im_end|>", " the", "\n"):
        assert tokenizer.convert_ids_to_tokens(tokens.find(token)) in (token, "Ġthe", "Ċ")
    with pytest.raises(ValueError, match="return_tokens_as_token_ids"):
        tokens.find("\ufffd", [239, 191, 189])


def test_several_choices_are_several_rows(tmp_path, chats, context, tokenizer):
    row = openai_batch(chats[0], tokenizer)
    row["response"]["body"]["choices"] *= 3
    _, rows = imported(write(tmp_path, [row]), context)
    assert len(rows) == 3 and rows[0] == rows[2]


def test_another_prompt_is_told(tmp_path, chats, context, tokenizer):
    row = trajectories(chats[0], tokenizer)
    row["usage"]["prompt_tokens"] += 7
    assert imported(write(tmp_path, [row]), context)[1].survey().other_prompt == 1


def test_other_files(tmp_path, chats, context, tokenizer):
    """A saved dataset, Parquet, parts; a last line without a line break, and a torn one."""
    from datasets import Dataset

    rows = [axolotl_kd_prepared(chat, tokenizer) for chat in chats]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1]))
    torn = json.dumps(rows[2]) + "\n" + json.dumps(rows[0])[:-9]
    (tmp_path / "parts" / "1.jsonl").write_text(torn)
    for name in ("saved", "rows.parquet", "parts"):
        layout, found = imported(tmp_path / name, context)
        assert layout == "axolotl_kd_prepared" and len(found) == 3
        assert [row["input_ids"] for row in found] == [chat.ids for chat in chats]
        assert found.survey().source.supervised == sum(len(chat.written) for chat in chats)


def test_no_layout_fits(tmp_path, context):
    path = write(tmp_path, [{"text": "no log-probabilities"}])
    with pytest.raises(ConfigError, match=r"has the keys text.*--layout: trajectories"):
        imported(path, context)
    with pytest.raises(ConfigError, match="--layout parquet is not known"):
        imported(path, context, layout="parquet")
    with pytest.raises(CaptureError, match="holds no rows"):
        open_rows(tmp_path / "nothing.jsonl")
