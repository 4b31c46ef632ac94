"""Token texts, as servers write them, back to ids; and whether these are the student's."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

PREFIX = "token_id:"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What was written, as trajectories, messages and completions name it.
TEXTS = ("content", "reasoning_content", "reasoning", "text")
ADVICE = "Import with a config whose `base_model` has the teacher's tokenizer"


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
        if text not in self._by_bytes or REPLACEMENT.encode() in text:
            raise ValueError(
                f"the token {token!r} (bytes {list(text)}) is not in the vocabulary of "
                f"{self.tokenizer.name_or_path}. Is it the teacher's tokenizer? If it is, ask "
                "vLLM with `return_tokens_as_token_ids: true`."
            )
        return self._by_bytes[text]

    def check_known(self, ids: Sequence[int]) -> None:
        """Raises ValueError for an id that the vocabulary does not have."""
        for token in ids:
            if token not in self._known:
                raise ValueError(
                    f"the token id {token} is not in the vocabulary of "
                    f"{self.tokenizer.name_or_path}: it is another tokenizer's. {ADVICE}"
                )

    def check_spelling(self, ids: Sequence[int], said: Mapping[str, Any]) -> None:
        """Raises ValueError where the tokens that were written do not spell what the answer says
        was written, any of its TEXTS: an id is an id in every vocabulary.

        Without any token there is nothing to check.
        """
        texts = {name: said[name] for name in TEXTS if isinstance(said.get(name), str)}
        if not ids or not texts:
            return
        self.check_known(ids)
        # Servers leave special tokens out of the text, unless asked not to.
        spelt = [self.tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False)]
        for name, text in texts.items():
            if not any(_has_words(found, text) for found in spelt):
                raise ValueError(
                    f"its tokens do not spell its `{name}`: they are another tokenizer's ids, or "
                    f"not all of what was written. {ADVICE}"
                )

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

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


def _has_words(found: str, text: str) -> bool:
    """Whether the words of `text` come in `found`, in order.

    Words, because servers take out what lies between: tags of thinking, spaces, stop strings. One
    with U+FFFD was cut within a character, and cannot be compared.
    """
    found, at = "".join(found.split()), 0
    for word in text.split():
        if REPLACEMENT not in word:
            at = found.find(word, at)
            if at < 0:
                return False
            at += len(word)
    return True


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
