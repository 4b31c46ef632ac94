"""Names of tokens that leave open which token it was are refused, in vocabularies of every layout.

A SentencePiece vocabulary has words with and without their space, tokens for bytes, and servers
that decode tokens one by one, whereby the space is lost.
"""

import pytest
from support.layouts import imported, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axolotl_distill.capture.layouts import Context
from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.errors import CaptureError, DistillError

WORDS = ["it", "is", "true", "that", "7", "12", "so", "on"]
END = "<|im_end|>"


def sentencepiece(words=WORDS, bare=True):
    """Byte tokens first, then letters and words, both with their space and, if `bare`, without."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁"]
    merges = []

    def add(piece):
        if piece in pieces:
            return
        if len(piece) > 1:
            add(piece[:-1])
            add(piece[-1])
            merges.append((piece[:-1], piece[-1]))
        pieces.append(piece)

    for word in words:
        add(f"▁{word}")
        if bare:
            add(word)
    ids = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": [END]})
    return made


def context_of(tokenizer):
    return Context(
        tokens=TokenIds(tokenizer),
        prompt=lambda messages: tokenizer("<s>so", add_special_tokens=False)["input_ids"],
        chat=lambda row: ([], []),
    )


def kept(token):
    """The name that keeps the space; a byte that is no text has U+FFFD, and its byte."""
    if len(token) == 6 and token.startswith("<0x"):
        raw = bytes([int(token[3:5], 16)])
    else:
        raw = token.replace("▁", " ").encode()
    return {"token": raw.decode(errors="replace"), "bytes": list(raw)}


def raw_piece(token):
    return {"token": token}


def stripped(token):
    name = kept(token)["token"].strip(" ")
    return {"token": name, "bytes": list(name.encode())}


def answer(tokens, content, name, alternatives=("▁on",)):
    """A chat completion whose teacher was sure of what it wrote."""
    entries = []
    for token in tokens:
        own = {**name(token), "logprob": -0.2}
        others = [{**name(other), "logprob": -3.0} for other in alternatives if other != token]
        entries.append({**own, "top_logprobs": [own, *others]})
    choice = {"message": {"content": content}, "logprobs": {"content": entries}}
    return {"messages": [{"role": "user", "content": "so"}], "choices": [choice]}


def written(tmp_path, tokenizer, *rows):
    """The ids after the prompt, of every row."""
    context = context_of(tokenizer)
    _, found = imported(write(tmp_path, list(rows)), context)
    found.survey()
    prompt = len(context.prompt([]))
    return [row["input_ids"][prompt:] for row in found]


TRUE = ["▁it", "▁is", "▁true", "▁that", "▁7", END]


@pytest.mark.parametrize("name", [kept, raw_piece])
def test_names_that_keep_their_space(tmp_path, name):
    """Also tokens without one, bytes of an emoji, runs of spaces, and the end of the turn."""
    tokenizer = sentencepiece()
    tokens = ["▁it", "is", "▁▁", "true", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "▁so", END]
    rows = [
        answer(tokens, "itis  true🙂 so", name, ["▁on", "on", "</s>"]),
        answer(TRUE, "it is true that 7", name),
    ]
    ids = written(tmp_path, tokenizer, *rows)
    assert ids == [tokenizer.convert_tokens_to_ids(some) for some in (tokens, TRUE)]


def test_spaces_that_the_server_left_out(tmp_path):
    row = answer(TRUE, "it is true that 7", stripped)
    with pytest.raises(CaptureError, match=r"row 1.*but for the spaces.*token_ids"):
        written(tmp_path, sentencepiece(), row)


def test_one_word_that_may_be_two_tokens(tmp_path):
    """Its text cannot tell: the space before it is no part of it."""
    row = answer(["▁7", END], "7", stripped)
    with pytest.raises(CaptureError, match=r"row 1.*left the spaces out.*'7' may be"):
        written(tmp_path, sentencepiece(), row)


def test_a_run_of_spaces_is_no_sign_that_spaces_are_kept(tmp_path):
    """`▁▁` decoded alone is one space less, and still a space."""
    tokenizer = sentencepiece()
    assert "▁▁▁" not in tokenizer.get_vocab()
    run = {"token": "  ", "bytes": [32, 32]}
    row = answer(["▁7", END], "7", stripped)
    row["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append({**run, "logprob": -5.0})
    with pytest.raises(CaptureError, match="left the spaces out"):
        written(tmp_path, tokenizer, row)


def test_alternatives_that_may_be_two_tokens(tmp_path):
    """Words that only have one token are no question; an alternative that has two is."""
    tokenizer = sentencepiece([*WORDS, "yes"])
    row = answer([END], "", stripped, ["▁on"])
    with pytest.raises(CaptureError, match="'on' may be"):
        written(tmp_path, tokenizer, row)


def test_names_without_a_space_where_there_is_one_token_only(tmp_path):
    tokenizer = sentencepiece(bare=False)
    row = answer(["▁it", "▁true", END], "it true", stripped)
    ids = tokenizer.convert_tokens_to_ids(["▁it", "▁true", END])
    assert written(tmp_path, tokenizer, row) == [ids]
    # A file that has both kinds of names is of no kind.
    with pytest.raises(CaptureError, match=r"row 1 .*lost the space"):
        written(tmp_path, tokenizer, row, answer(["▁it", "▁so", END], "it so", kept))


def test_a_byte_stands_for_what_no_other_token_has(tmp_path):
    tokenizer = sentencepiece()
    row = answer(["▁it", "7", "<0x21>", END], "it7!", kept)
    ids = tokenizer.convert_tokens_to_ids(["▁it", "7", "<0x21>", END])
    assert written(tmp_path, tokenizer, row) == [ids]
    # By its own name it is itself, whatever else has its byte.
    row = answer(["▁it", "<0x37>"], "it7", raw_piece)
    assert written(tmp_path, tokenizer, row)[0][-1] == tokenizer.convert_tokens_to_ids("<0x37>")


def test_byte_level_spaces(tmp_path, tokenizer):
    """SmolLM2: what was written with its spaces, and what a server stripped of them."""
    pieces = tokenizer("The café 🙂  costs a 1and\n\n\tyen: 日本語<|im_end|>")["input_ids"]
    names = {number: raw for raw, (number, *_) in TokenIds(tokenizer)._by_bytes.items()}

    def row(change):
        entries = []
        for token in pieces:
            raw = change(names.get(token) or tokenizer.decode([token]).encode())
            own = {"token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": -0.1}
            entries.append({**own, "top_logprobs": [own]})
        message = {"content": "The café 🙂  costs a 1and\n\n\tyen: 日本語"}
        choice = {"message": message, "logprobs": {"content": entries}}
        return {"messages": [{"role": "user", "content": "?"}], "choices": [choice]}

    context = Context(TokenIds(tokenizer), prompt=lambda _: [1], chat=lambda _: ([], []))
    _, found = imported(write(tmp_path, [row(lambda raw: raw)]), context)
    found.survey()
    assert found[0]["input_ids"][1:] == pieces
    _, found = imported(write(tmp_path, [row(lambda raw: raw.replace(b" a", b"a"))]), context)
    with pytest.raises(CaptureError, match=r"row 1.*but for the spaces"):
        found.survey()


def test_lists_about_another_text(tmp_path, tokenizer):
    """Neither their own token nor a neighbour's, though they hold most of the probability."""
    rng_ids = list(range(1000, 1060))
    entries = [
        {
            "token": f"token_id:{token}",
            "logprob": -9.0,
            "top_logprobs": [
                {"token": f"token_id:{token + 500}", "logprob": -0.1},
                {"token": f"token_id:{token + 600}", "logprob": -3.0},
            ],
        }
        for token in rng_ids
    ]
    choice = {"message": {"content": None}, "logprobs": {"content": entries}}
    row = {"messages": [{"role": "user", "content": "?"}], "choices": [choice]}
    context = Context(TokenIds(tokenizer), prompt=lambda _: [1], chat=lambda _: ([], []))
    with pytest.raises(CaptureError, match=r"hold 95% of the probability.*came in 0\.0%"):
        imported(write(tmp_path, [row]), context)[1].survey()


def test_one_token_twice_in_a_list(tmp_path, tokenizer):
    own = {"token": "token_id:1000", "logprob": -0.1}
    entry = {**own, "top_logprobs": [own, {**own, "logprob": -2.0}]}
    choice = {"message": {"content": None}, "logprobs": {"content": [entry]}}
    row = {"messages": [{"role": "user", "content": "?"}], "choices": [choice]}
    context = Context(TokenIds(tokenizer), prompt=lambda _: [1], chat=lambda _: ([], []))
    with pytest.raises(CaptureError, match=r"row 1 .*token id 1000 twice"):
        imported(write(tmp_path, [row]), context)[1].survey()


@pytest.mark.parametrize(
    "name, content, about",
    [
        ("rows.parquet", b"PAR1 no", "cannot be read"),
        ("rows.jsonl", b'{"choices": [null]}', "no layout has"),
        ("rows.jsonl", b'{"response": "502 Bad Gateway"}', "no layout has"),
        ("rows.jsonl", b"[1]\n", "row 1 of all"),
        ("rows.jsonl", b"\xff\xfe\n", "row 1 of all"),
        ("rows.jsonl", b"", "holds no rows"),
    ],
)
def test_files_of_something_else(tmp_path, tokenizer, name, content, about):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DistillError, match=about):
        imported(path, context_of(tokenizer))
