"""A small teacher that is a table, and tokenizers of a few merges: every text that it can write may
be enumerated."""

from functools import cache

import numpy as np
import torch
from distill_kernels import DenseLogits
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axolotl_distill.align import Pieces
from axolotl_distill.signal.signal import Signal

LONGEST = 5
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


class Explicit:
    """p(next | last, place), random, over texts of `letters` as the tokenizer cuts them."""

    def __init__(self, pieces: Pieces, letters: str, seed: int):
        self.pieces, self.vocab_size = pieces, len(pieces)
        self.end = pieces.tokenizer.eos_token_id
        self.tokens = [
            i for i, raw in enumerate(pieces.bytes_of) if raw and set(raw) <= set(letters.encode())
        ]
        self.rng = np.random.default_rng(seed)
        self.seen: dict[tuple[int, ...], np.ndarray] = {}

    def probs(self, before: tuple[int, ...]) -> np.ndarray:
        """[ids]; only what the tokenizer would cut so."""
        if before not in self.seen:
            found = np.zeros(self.vocab_size)
            found[self.end] = self.rng.gamma(0.5)
            for token in self.tokens if len(before) < LONGEST else ():
                text = b"".join(self.pieces.bytes_of[i] for i in (*before, token)).decode()
                if self.pieces.cut([text])[0] == [*before, token]:
                    found[token] = self.rng.gamma(0.5)
            self.seen[before] = found / found.sum()
        return self.seen[before]

    def texts(self, before: tuple[int, ...] = (), mass: float = 1.0):
        """(tokens, probability) of all there are."""
        probs = self.probs(before)
        yield before, mass * probs[self.end]
        for token in np.flatnonzero(probs):
            if token != self.end:
                yield from self.texts((*before, int(token)), mass * probs[token])

    def grade(self, rows, positions, want):
        for number, ids in rows.items():
            logits = [np.log(np.maximum(self.probs(tuple(ids[1 : t + 1])), 1e-300))
                      for t in positions[number]]  # fmt: skip
            logits = torch.tensor(np.stack(logits), dtype=torch.float64)
            # In parts, so that sums reach over their edges.
            for start in range(0, len(logits), 2):
                part = slice(start, min(start + 2, len(logits)))
                yield number, part, Signal(DenseLogits(logits[part]))


CASES = {
    "alike": (("a b",), ("a b",), "abc"),
    "teacher splits": ((), ("a b", "ab c"), "abc"),
    "teacher splits digits": ((), (THREES,), "123"),
    "student splits": (("a b", "ab c"), (), "abc"),
    "both, across each other": (("a b",), ("b c",), "abc"),
}
