"""Tokenizers small enough to write every text of them down."""

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axolotl_distill.align import Pieces

END = "<end>"


THREES = "123"
"""Not merges, but digits cut from the left by threes, as DeepSeek and Llama 3 do"""


def threes() -> list[str]:
    pairs = [a + b for a in THREES for b in THREES]
    return [
        *(f"{pair[0]} {pair[1]}" for pair in pairs),
        *(f"{pair} {digit}" for pair in pairs for digit in THREES),
        *(f"{digit} {pair}" for pair in pairs for digit in THREES),
    ]


@cache
def byte_level(*merges: str) -> Pieces:
    """Byte-level BPE with these merges, each "left right", and an end."""
    by_threes = merges == (THREES,)
    merges = tuple(threes()) if by_threes else merges
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)}
    pairs = [tuple(merge.split()) for merge in merges]
    for left, right in pairs:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        *([pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")] if by_threes else []),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    return Pieces(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END))
