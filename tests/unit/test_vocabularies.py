"""Tokens that only the student has are no difference; tokens that mean something else are."""

import json
import shutil
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, MistralCommonBackend, PreTrainedTokenizerFast
from transformers.integrations.mistral import convert_tekken_tokenizer

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError, StoreError, TokenizerMismatchError
from axolotl_distill.store import check_compatible, describe_tokenizer, tokens_of
from axolotl_distill.teachers.tokenizer import compare_tokenizers, local_vocabulary, share

SIZE = 49_152
IM_START, IM_END = 1, 2
TEXT = {IM_START, IM_END, 4093, 30}


def swapped(tokenizer, first, second):
    """The same merges with two ids changed places."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = document["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)))


def renamed(tokenizer, number, name):
    """As Axolotl's `added_tokens_overrides` leaves a tokenizer."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    (token,) = (entry for entry in document["added_tokens"] if entry["id"] == number)
    vocab = document["model"]["vocab"]
    vocab.pop(token["content"])
    vocab[name] = number
    token["content"] = name
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)))


def manifest(tokenizer, size=SIZE, used=TEXT):
    return SimpleNamespace(vocab_size=size, tokenizer=describe_tokenizer(tokenizer, size, used))


@pytest.fixture
def extended(tokenizer):
    """What `special_tokens: {pad_token: …}` and `tokens: […]` make of it: ids 49152 to 49154."""
    tokenizer.add_special_tokens({"pad_token": "<|my_padding|>"})
    tokenizer.add_tokens(["<|my_tool|>", "<|my_end|>"])
    return tokenizer


@pytest.fixture
def plain(smollm2_dir):
    return AutoTokenizer.from_pretrained(smollm2_dir)


def test_tokens_that_the_student_adds_are_its_own(smollm2_dir, extended):
    shared, compared = local_vocabulary(TeacherArgs(model=str(smollm2_dir)), extended)
    assert compared and shared.size == SIZE
    assert shared.foreign == {49152: "<|my_padding|>", 49153: "<|my_tool|>", 49154: "<|my_end|>"}
    rows = [{"input_ids": [IM_START, 30, 30]}, {"input_ids": [IM_START, 49153, 30]}]
    assert shared.check_text(rows[:1], "t") == {IM_START, 30}
    with pytest.raises(CaptureError, match=r"Row 2 .*'<\|my_tool\|>' \(id 49153\)"):
        shared.check_text(rows, "t")


def test_tokens_that_the_teacher_adds_are_its_own(plain, extended):
    assert compare_tokenizers("t", extended, plain) == set()


def test_a_renamed_token_differs_only_where_text_has_it(plain, tokenizer):
    student = renamed(tokenizer, 5, "<|my_name|>")
    shared = share(student, compare_tokenizers("t", plain, student))
    assert shared.foreign == {5: "<|my_name|>"} and shared.size == SIZE
    assert shared.check_text([{"input_ids": [1, 30]}], "t") == {1, 30}
    with pytest.raises(CaptureError, match="my_name"):
        shared.check_text([{"input_ids": [1, 5]}], "t")
    check_compatible(manifest(plain), tokenizer=student, student_vocab_size=SIZE)
    check_compatible(manifest(student), tokenizer=plain, student_vocab_size=SIZE)
    with pytest.raises(TokenizerMismatchError, match=r"5 is '<file_sep>'.*'<.my_name.>'"):
        check_compatible(manifest(plain, used={5}), tokenizer=student, student_vocab_size=SIZE)


def test_other_ordinary_tokens_are_another_tokenizer(plain, tokenizer):
    """The first ids are named, and the message says what to do."""
    other = swapped(tokenizer, "Ġlazy", "Ġbrown")
    ids = sorted(plain.convert_tokens_to_ids(["Ġlazy", "Ġbrown"]))
    message = (
        rf"differ in 2 ordinary tokens; the first ids: {ids[0]} is .*; {ids[1]} is .*Use a tea"
    )
    with pytest.raises(TokenizerMismatchError, match=message):
        compare_tokenizers("t", other, plain)
    with pytest.raises(TokenizerMismatchError, match=r"distill\.cross_tokenizer"):
        check_compatible(manifest(plain), tokenizer=other, student_vocab_size=SIZE)


def test_the_same_tokens_read_otherwise(plain, tokenizer):
    """The vocabulary says nothing of the merges."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["merges"] = document["model"]["merges"][:1000]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(document)))
    with pytest.raises(TokenizerMismatchError, match="they part at token"):
        compare_tokenizers("t", other, plain)


def test_a_store_serves_every_student_with_its_tokens(plain, extended):
    for made, used in ((plain, extended), (extended, plain), (extended, extended)):
        check_compatible(manifest(made), tokenizer=used, student_vocab_size=SIZE)


def test_heads_of_other_sizes(plain, extended):
    check_compatible(manifest(plain), tokenizer=plain, student_vocab_size=SIZE + 128)
    # The teacher has the added tokens, the student's checkpoint not yet: Axolotl resizes it.
    store = manifest(extended, SIZE + 3)
    check_compatible(store, tokenizer=extended, student_vocab_size=SIZE)
    with pytest.raises(StoreError, match="has 49151 rows"):
        check_compatible(store, tokenizer=extended, student_vocab_size=SIZE - 1)


def test_a_teacher_without_a_tokenizer(tmp_path, tiny_llama_dir, extended):
    """Only the size of its head is known, and that it has no row for what the student adds."""
    about = json.loads((tiny_llama_dir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about))
    shared, compared = local_vocabulary(TeacherArgs(model=str(tmp_path)), extended)
    assert not compared and shared.size == SIZE and len(shared.foreign) == 3
    (tmp_path / "config.json").write_text(json.dumps({**about, "vocab_size": 49_000}))
    with pytest.raises(CaptureError, match="49000 tokens, and 152 ordinary tokens"):
        local_vocabulary(TeacherArgs(model=str(tmp_path)), extended)


@pytest.fixture(scope="module")
def tekken(tmp_path_factory):
    """Mistral's own files: Nemo's tokenizer as mistral-common reads it and as a tokenizer.json, and
    the SentencePiece one before it."""
    data = pytest.importorskip("mistral_common").__path__[0] + "/data"
    folder = tmp_path_factory.mktemp("mistral")
    for name, source in (
        ("tekken.json", "tekken_240718.json"),
        ("tokenizer.model", "mistral_instruct_tokenizer_240323.model.v3"),
    ):
        (folder / name.split(".")[0]).mkdir()
        shutil.copy(f"{data}/{source}", folder / name.split(".")[0] / name)
    about = {"model_type": "mistral", "vocab_size": 131_072}
    (folder / "tekken" / "config.json").write_text(json.dumps(about))
    return folder


def test_a_tekken_tokenizer_is_its_tokenizer_json(tekken):
    """mistral-common's names lose 1,435 tokens that are parts of characters; its bytes do not."""
    own = AutoTokenizer.from_pretrained(tekken / "tekken")
    assert (
        type(own).__name__ == "MistralCommonBackend"
        and len(set(own.get_vocab().values())) < 130_000
    )
    tokens = tokens_of(own)
    assert len(tokens) == len(own) == 131_072 == len(set(tokens.values()))
    assert tokens[0] == "<unk>" and tokens[own("Hello", add_special_tokens=False).input_ids[0]]
    converted = convert_tekken_tokenizer(str(tekken / "tekken" / "tekken.json"))
    assert tokens_of(converted) == tokens
    for teacher, student in ((own, own), (own, converted), (converted, own)):
        assert compare_tokenizers("t", teacher, student) == set()
        store = manifest(teacher, 131_072, used={1, 5000})
        check_compatible(store, tokenizer=student, student_vocab_size=131_072)
    shared, compared = local_vocabulary(TeacherArgs(model=str(tekken / "tekken")), own)
    assert compared and shared.size == 131_072 and not shared.foreign


def test_a_tekken_tokenizer_is_no_other(tekken, plain):
    own = AutoTokenizer.from_pretrained(tekken / "tekken")
    older = MistralCommonBackend.from_pretrained(tekken / "tokenizer")
    assert tokens_of(older)[29473] == "▁"
    for teacher, student in ((own, plain), (plain, own), (own, older), (older, plain)):
        with pytest.raises(TokenizerMismatchError, match="ordinary tokens"):
            compare_tokenizers("t", teacher, student)
    with pytest.raises(TokenizerMismatchError):
        check_compatible(manifest(own, 131_072), tokenizer=older, student_vocab_size=131_072)


def test_a_tokenizer_that_cannot_be_read_is_not_none(tmp_path, plain):
    """The teacher has one, so that nobody may say that it has none."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": SIZE}))
    for content in ("{}", "not JSON"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(CaptureError, match="cannot be read"):
            local_vocabulary(TeacherArgs(model=str(tmp_path)), plain)
