"""Whether teacher and student read token ids the same way."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from axolotl_distill.errors import StoreError, TokenizerMismatchError
from axolotl_distill.store.manifest import Manifest


def _byte_characters() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


# GPT-2's alphabet: printable bytes stand for themselves, the others follow from U+0100.
BYTE_OF = _byte_characters()
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def tokens_of(tokenizer: Any) -> dict[int, str]:
    """{id: token} of a tokenizer as transformers loads it, added tokens included, by id.

    One of mistral-common's calls a thousand tokens that are parts of characters U+FFFD, so these
    are named by their bytes, as a tokenizer.json names them.
    """
    tekken = tekken_of(tokenizer)
    if tekken is not None:
        special = added_tokens(tokenizer)
        named = {number: token for token, number in special.items()}
        for number in range(tekken.n_words):
            if number not in named:
                raw = tekken.id_to_byte_piece(number)
                named[number] = "".join(CHARACTER_OF[byte] for byte in raw)
        return dict(sorted(named.items()))
    return {number: token for token, number in sorted(tokenizer.get_vocab().items(), key=_by_id)}


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """{token: id} of what is no ordinary text: added tokens, or mistral-common's special ones."""
    if hasattr(tokenizer, "get_added_vocab"):
        return tokenizer.get_added_vocab()
    ids = sorted(tokenizer.all_special_ids)
    return dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))


def tekken_of(tokenizer: Any) -> Any | None:
    """mistral-common's own tokenizer, where it is one of bytes."""
    instruct = getattr(getattr(tokenizer, "tokenizer", None), "instruct_tokenizer", None)
    inner = getattr(instruct, "tokenizer", None)
    return inner if hasattr(inner, "id_to_byte_piece") else None


def tokenizer_fingerprint(
    tokenizer: Any, *, vocab_size: int | None = None, apart: Iterable[int] = ()
) -> str:
    """sha256 over every (id, token) below `vocab_size`, ids in `apart` left out.

    The chat template is not part of it: records belong to token ids, however these were made.
    """
    without = set(apart)
    pairs = [
        pair
        for pair in tokens_of(tokenizer).items()
        if pair[0] not in without and (vocab_size is None or pair[0] < vocab_size)
    ]
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True).encode()).hexdigest()


def describe_tokenizer(tokenizer: Any, vocab_size: int, used: Iterable[int]) -> dict[str, Any]:
    """What a manifest says of the tokenizer that a store's ids belong to.

    used   ids that stand in the store's text

    fingerprint   over the ids below `vocab_size`, those of added tokens (`added`, as ranges
                  [first, last]) left out: other names for them are no difference …
    text          {token: id} of the added tokens in the text: … unless the text has them
    """
    added = sorted(set(added_tokens(tokenizer).values()))
    tokens, used = tokens_of(tokenizer), set(used)
    return {
        "fingerprint": tokenizer_fingerprint(tokenizer, vocab_size=vocab_size, apart=added),
        "added": _ranges(number for number in added if number < vocab_size),
        "text": {tokens[number]: number for number in added if number in used},
        "name": tokenizer.name_or_path,
        "class": type(tokenizer).__name__,
    }


def added_ids(described: Mapping[str, Any]) -> set[int]:
    """The ids of `added` in a manifest's tokenizer."""
    return {i for first, last in described.get("added", ()) for i in range(first, last + 1)}


def check_compatible(manifest: Manifest, *, tokenizer: Any, student_vocab_size: int) -> None:
    """Raises TokenizerMismatchError when the student's tokenizer does not have the store's tokens,
    and StoreError when its output head is too small for the stored ids.

    Tokens that only the student has, and a head padded beyond the vocabulary, are fine; so is a
    head without the tokens that a tokenizer adds, for Axolotl makes room for these.
    """
    expected = manifest.tokenizer
    name = getattr(tokenizer, "name_or_path", "?")
    seen = tokenizer_fingerprint(
        tokenizer, vocab_size=manifest.vocab_size, apart=added_ids(expected)
    )
    tokens = tokens_of(tokenizer)
    differing = [
        f"{number} is {token!r} in the store and {tokens.get(number)!r} in the student's"
        for token, number in expected.get("text", {}).items()
        if tokens.get(number) != token
    ]
    if seen != expected["fingerprint"] or differing:
        found = "; ".join(differing[:3]) or (
            f"fingerprint {seen[:12]}, the store's {expected['fingerprint'][:12]}"
        )
        raise TokenizerMismatchError(
            f"The student's tokenizer ({name}, {len(tokens)} tokens) is not the one the store was "
            f"captured with ({expected.get('name', '?')}, {manifest.vocab_size} tokens): {found}. "
            "Token ids would mean other tokens. Use a student with the store's tokenizer, which "
            "may have more tokens, or capture again for this student, with "
            "`distill.cross_tokenizer: {method: span}` where the teacher has another tokenizer."
        )
    added = set(added_tokens(tokenizer).values())
    ordinary = max((number for number in tokens if number not in added), default=-1)
    if student_vocab_size < min(manifest.vocab_size, ordinary + 1):
        raise StoreError(
            f"The student's output head has {student_vocab_size} rows (`vocab_size` of its "
            f"config), but the store holds token ids up to {manifest.vocab_size - 1}. Resize the "
            "student's embeddings to its tokenizer first."
        )


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """[first, last] of each run of ascending numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def _by_id(item: tuple[str, int]) -> tuple[int, str]:
    return item[1], item[0]
