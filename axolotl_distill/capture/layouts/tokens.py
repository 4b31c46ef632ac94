"""Token texts, as servers write them, back to ids; and whether these are the student's."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from axolotl_distill.align.pieces import (
    BYTE_TOKEN,
    MARK,
    from_byte_level,
    from_sentencepiece,
    is_byte_level,
)
from axolotl_distill.errors import ConfigError

PREFIX = "token_id:"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# What was written, as trajectories, messages and completions name it.
TEXTS = ("content", "reasoning_content", "reasoning", "text")
BY_ID = "ask the server for ids (vLLM: `return_tokens_as_token_ids: true`)"
ADVICE = "Import with a config whose `base_model` has the teacher's tokenizer"


class TokenIds:
    """Ids of a fast Hugging Face tokenizer's tokens by what they are called in an answer.

    A SentencePiece vocabulary has `true` and `▁true`, and a server that decodes tokens one by one
    calls both `true`: what `find` then gives is a guess. It counts what it saw, so that the reader
    of all rows can tell whether the server keeps spaces:

    begins_with_space  a name did, so names are what they look like
    doubtful           the first name that stands for two tokens where spaces were left out
    guessed            the first that has an id only if a space was left out

    Raises ConfigError for a tokenizer that is not a fast one.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"{tokenizer.name_or_path} is read by {type(tokenizer).__name__}, which does not "
                "tell the bytes of its tokens. Import with a tokenizer that has a tokenizer.json."
            )
        self.tokenizer = tokenizer
        self.begins_with_space = self._is_byte_level
        self.doubtful: str | None = None
        self.guessed: str | None = None

    def find(self, token: str, raw: list[int] | None = None) -> int:
        """The id of "token_id:123", of a token's bytes, or of its text.

        Raises ValueError for a token that the vocabulary does not have, and for one that several
        ids stand for. vLLM writes a token that is a part of a character as U+FFFD, bytes and all;
        which one it was is lost.
        """
        if is_id(token):
            return int(token.removeprefix(PREFIX))
        named = self._added.get(token)
        if named is not None:
            return named
        text = bytes(raw) if raw else token.encode()
        if not self._is_byte_level:
            if BYTE_TOKEN.fullmatch(token):
                return self.tokenizer.convert_tokens_to_ids(token)
            if MARK in token:
                text = token.replace(MARK, " ").encode()
        ids = self._by_bytes.get(text, [])
        if not self._is_byte_level:
            # Of a run of spaces a server may have left out one.
            if text.strip() and text.startswith(b" "):
                self.begins_with_space = True
            elif spaced := self._by_bytes.get(b" " + text):
                if ids:
                    self.doubtful = self.doubtful or token
                else:
                    ids, self.guessed = spaced, self.guessed or token
        if not text or not ids or REPLACEMENT.encode() in text:
            raise ValueError(
                f"the token {token!r} (bytes {list(text)}) is not in the vocabulary of "
                f"{self.tokenizer.name_or_path}. Is it the teacher's tokenizer? If it is, {BY_ID}"
            )
        if len(ids) > 1:
            raise ValueError(
                f"the token {token!r} (bytes {list(text)}) may be any of the ids {ids} of "
                f"{self.tokenizer.name_or_path}. Instead of names, {BY_ID}"
            )
        return ids[0]

    def check_names(self) -> None:
        """To be called when every name was seen. Raises ValueError where the server leaves out
        the spaces of tokens, and some name may stand for two."""
        if self.doubtful and not self.begins_with_space:
            raise ValueError(
                f"no token of the file begins with a space, and those of "
                f"{self.tokenizer.name_or_path} do: the server left the spaces out, and "
                f"{self.doubtful!r} may be the token with a space or the one without. Instead of "
                f"names, {BY_ID}"
            )
        if self.guessed and self.begins_with_space:
            raise ValueError(
                f"the token {self.guessed!r} is not in the vocabulary of "
                f"{self.tokenizer.name_or_path}, or lost the space that other tokens of the file "
                f"have. Is it the teacher's tokenizer? If it is, {BY_ID}"
            )

    def check_known(self, ids: Sequence[int]) -> None:
        """Raises ValueError for an id that the vocabulary does not have."""
        for token in ids:
            if token not in self._known:
                raise ValueError(
                    f"the token id {token} is not in the vocabulary of "
                    f"{self.tokenizer.name_or_path}: it is another tokenizer's. {ADVICE}"
                )

    def check_spelling(
        self, ids: Sequence[int], said: Mapping[str, Any], by_name: bool = False
    ) -> None:
        """Raises ValueError where the tokens that were written do not spell what the answer says
        was written, any of its TEXTS: an id is an id in every vocabulary.

        by_name   the ids were found by names, which spell the text with its spaces, or are others

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
            if by_name and not any(self._has_spaces(found, text) for found in spelt):
                raise ValueError(
                    f"its tokens spell its `{name}` but for the spaces, so they may be others than "
                    f"were written. Instead of names, {BY_ID}"
                )

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_vocab().values())

    @cached_property
    def _added(self) -> dict[str, int]:
        return self.tokenizer.get_added_vocab()

    @cached_property
    def _by_bytes(self) -> dict[bytes, list[int]]:
        """Every token's bytes, and the ids that it may be: more than one only where the tokenizer
        itself has no preference. Added tokens are cut out of a text before any other, and a byte
        token stands for what no other token has."""
        read = from_byte_level if self._is_byte_level else from_sentencepiece
        found: dict[bytes, list[tuple[int, int]]] = {}
        for token, number in self.tokenizer.get_vocab().items():
            if token in self._added:
                found.setdefault(token.encode(), []).append((0, number))
            else:
                is_byte = not self._is_byte_level and bool(BYTE_TOKEN.fullmatch(token))
                found.setdefault(read(token), []).append((1 + is_byte, number))
        found.pop(b"", None)
        return {
            text: sorted(number for rank, number in ids if rank == min(ids)[0])
            for text, ids in found.items()
        }

    @cached_property
    def _is_byte_level(self) -> bool:
        return is_byte_level(self.tokenizer)

    def _has_spaces(self, found: str, text: str) -> bool:
        """Whether `text` stands in `found`, runs of spaces aside, and those before punctuation."""
        if REPLACEMENT in text:
            return True
        cleaned = self.tokenizer.clean_up_tokenization(found)
        wanted = " ".join(text.split())
        return any(wanted in " ".join(one.split()) for one in (found, cleaned))


def is_id(token: str) -> bool:
    """Whether a token is called "token_id:123"."""
    return token.startswith(PREFIX) and token.removeprefix(PREFIX).isdecimal()


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
