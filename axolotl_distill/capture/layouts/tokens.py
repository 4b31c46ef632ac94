"""Token texts, as servers write them, back to ids."""

import json
from functools import cached_property
from typing import Any

PREFIX = "token_id:"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class TokenIds:
    """Ids of a fast Hugging Face tokenizer's tokens by what they are called in an answer."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def find(self, token: str, raw: list[int] | None = None) -> int:
        """The id of "token_id:123", of a token's bytes, or of its text.

        Raises ValueError for a token that the vocabulary does not have. vLLM writes a token that
        is a part of a character as U+FFFD, bytes and all; which one it was is lost.
        """
        if token.startswith(PREFIX):
            return int(token.removeprefix(PREFIX))
        text = bytes(raw) if raw else token.encode()
        if text not in self._by_bytes or REPLACEMENT in text:
            raise ValueError(
                f"the token {token!r} (bytes {list(text)}) is not in the vocabulary of "
                f"{self.tokenizer.name_or_path}. Is it the teacher's tokenizer? If it is, ask "
                "vLLM with `return_tokens_as_token_ids: true`."
            )
        return self._by_bytes[text]

    @cached_property
    def _by_bytes(self) -> dict[bytes, int]:
        read = _from_byte_level if self._is_byte_level else _from_sentencepiece
        special = set(self.tokenizer.get_added_vocab())
        found: dict[bytes, int] = {}
        for token, number in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            found.setdefault(token.encode() if token in special else read(token), number)
        return found

    @property
    def _is_byte_level(self) -> bool:
        described = json.loads(self.tokenizer.backend_tokenizer.to_str())
        return "ByteLevel" in json.dumps([described["pre_tokenizer"], described["decoder"]])


def _from_byte_level(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)


def _from_sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _byte_characters()
