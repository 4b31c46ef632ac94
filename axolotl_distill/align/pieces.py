"""A tokenizer's tokens as the bytes that they stand for, and texts cut into them.

Exact for byte-level BPE (GPT-2's alphabet; tekken) and for SentencePiece with byte fallback. Bytes,
because names of tokens mean nothing to another tokenizer: `Ġthe`, `▁the` and ` the` are one token.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from axolotl_distill.errors import TokenizerMismatchError
from axolotl_distill.store.tokenizer import (
    BYTE_OF,
    added_tokens,
    tekken_of,
    tokenizer_fingerprint,
    tokens_of,
)

# SentencePiece's space, and its tokens for bytes that no other token has.
MARK = "\u2581"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
# Stands before a text that is no document's first, for a tokenizer that puts a space before those.
ANCHOR = "\n"
PROBES = ("Hello, 123 worlds", "a\n\n  b\tc", "naïve 日本語 🙂👩🏽‍🚀 ﷽")


class Pieces:
    """The tokens of one tokenizer, as transformers loads it.

    bytes_of  [ids] what each id stands for; b"" for special tokens, which stand for no text
    special   ids of what is no text: ends of turns and the like

    Raises TokenizerMismatchError for a tokenizer whose tokens do not give a text back.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        tokens = tokens_of(tokenizer)
        self.special = _specials(tokenizer)
        added = set(added_tokens(tokenizer).values())
        read = from_byte_level if is_byte_level(tokenizer) else from_sentencepiece
        self.bytes_of = [b""] * (max(tokens, default=-1) + 1)
        for number, token in tokens.items():
            if number not in self.special:
                self.bytes_of[number] = token.encode() if number in added else read(token)
        self._anchored = False
        self._anchored = self.spell(self._cut(["a"])[0]) != b"a"
        for text in PROBES:
            (ids,) = self.cut([text])
            made = self.spell(ids or [])
            if made != text.encode():
                raise TokenizerMismatchError(
                    f"The tokenizer of {self.name} ({type(tokenizer).__name__}) does not give a "
                    f"text back: of {text!r} it makes {made.decode(errors='replace')!r}. "
                    "Tokens are compared by their bytes, which byte-level BPE, tekken and "
                    "SentencePiece with byte fallback have. Learn from this teacher's text alone: "
                    "`distill.teacher: text`."
                )

    def __len__(self) -> int:
        return len(self.bytes_of)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every id and token."""
        return tokenizer_fingerprint(self.tokenizer)

    @cached_property
    def digest(self) -> str:
        """sha256 over all that decides how it cuts a text, and which tokens are no text; empty
        where that cannot be told. Two of one vocabulary need not cut alike."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return ""
        said = f"{backend.to_str()}{sorted(self.special)}{self._anchored}"
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [ids], in bytes."""
        return np.fromiter(map(len, self.bytes_of), np.int64, len(self.bytes_of))

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The id of each token's bytes; of several with the same, the one that text is cut into: a
        byte token stands for what no other token has."""
        names = tokens_of(self.tokenizer)
        found: dict[bytes, int] = {}
        for number, raw in enumerate(self.bytes_of):
            if raw and (raw not in found or BYTE_TOKEN.fullmatch(names.get(found[raw], ""))):
                found[raw] = number
        return found

    @cached_property
    def sorted(self) -> tuple[list[bytes], np.ndarray]:
        """(bytes in order, int64 ids): of all tokens that stand for text."""
        order = sorted((raw, number) for number, raw in enumerate(self.bytes_of) if raw)
        return [raw for raw, _ in order], np.array([number for _, number in order], np.int64)

    def beginning(self, prefix: bytes) -> np.ndarray:
        """int64: the tokens that begin with it."""
        return self.sorted[1][slice(*prefixed(self.sorted[0], prefix))]

    def cut(self, texts: Sequence[str]) -> list[list[int] | None]:
        """Ids of each text as it is cut amid a document, without any special token; None where
        the tokenizer would cut across its beginning."""
        if not self._anchored:
            return list(self._cut(texts))
        skipped = len(self.spell(self._cut([ANCHOR])[0]))
        return [self._after(ids, skipped) for ids in self._cut([ANCHOR + text for text in texts])]

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in found]
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _after(self, ids: list[int], skipped: int) -> list[int] | None:
        at = 0
        for place, number in enumerate(ids):
            if at >= skipped:
                return ids[place:] if at == skipped else None
            at += len(self.bytes_of[number])
        return [] if at == skipped else None

    def spell(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids one after another."""
        return b"".join(self.bytes_of[number] for number in ids)


def prefixed(ordered: list[bytes], prefix: bytes) -> tuple[int, int]:
    """Where those lie that begin with `prefix`."""
    first = bisect_left(ordered, prefix)
    # No byte of UTF-8 is FF.
    return first, bisect_left(ordered, prefix + b"\xff" * 2, first) if prefix else len(ordered)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether its tokens are written in GPT-2's alphabet; else they are SentencePiece's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tekken_of(tokenizer) is not None
    described = json.loads(backend.to_str())
    return "ByteLevel" in json.dumps([described["pre_tokenizer"], described["decoder"]])


def from_byte_level(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet."""
    return bytes(BYTE_OF[character] for character in token if character in BYTE_OF)


def from_sentencepiece(token: str) -> bytes:
    """The bytes of a token of SentencePiece's."""
    if BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace(MARK, " ").encode()


def _specials(tokenizer: Any) -> frozenset[int]:
    """Added tokens that are not text; `<think>` and runs of spaces are added by some, and are."""
    decoder = getattr(tokenizer, "added_tokens_decoder", None)
    found = set(tokenizer.all_special_ids)
    if decoder is not None:
        found |= {number for number, token in decoder.items() if token.special}
    return frozenset(found)
