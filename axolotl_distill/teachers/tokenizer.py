"""Whether a teacher reads text as the student does: token ids must mean the same to both."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError, TokenizerMismatchError
from axolotl_distill.store.tokenizer import added_tokens, tokens_of

PROBE_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?",
    "  two spaces\n\n\ttab, and\r\na line; x = {'a': [1, 22, 333, 4444]}\n",
    "naïve façade, Straße, смысл, 日本語の文章, 한국어, العربية, 🙂👩🏽‍🚀",
)
PROBED_TOKENS = 512
CROSS = "set `distill.cross_tokenizer: {method: span}`, which translates"
READABLE = "Take such rows out, or use a chat template and special tokens that the teacher knows."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")


@dataclass(frozen=True)
class SharedVocabulary:
    """The token ids that a teacher and a student share.

    size      ids below it are the teacher's too, but for
    foreign   {id: token} of the student's tokens that the teacher lacks or calls otherwise
    """

    size: int
    foreign: dict[int, str] = field(default_factory=dict)

    def check_text(self, rows: Iterable[dict[str, Any]], teacher: str) -> set[int]:
        """The ids that stand in the text of `rows`.

        Raises CaptureError for the first row with a token that the teacher cannot read.
        """
        used: set[int] = set()
        for index, row in enumerate(rows):
            ids = np.unique(np.asarray(row["input_ids"], dtype=np.int64))
            if named := self.unread(ids):
                raise CaptureError(
                    f"Row {index + 1} of the text to capture holds {named}, which only the "
                    f"student's tokenizer has: `{teacher}` cannot read it. {READABLE}"
                )
            used |= set(ids.tolist())
        return used

    def reads(self, token: int) -> bool:
        """Whether an id means the same to both."""
        return token < self.size and token not in self.foreign

    def check_ids(self, ids: np.ndarray, teacher: str) -> None:
        """Raises TokenizerMismatchError where `ids`, a text, have a token that the teacher cannot
        read."""
        if named := self.unread(np.unique(ids)):
            begin = ids[:24].tolist()
            raise TokenizerMismatchError(
                f"A text of this batch (tokens {begin}, …) holds {named}, which only the student's "
                f"tokenizer has: the teacher `{teacher}` cannot read it. {READABLE}"
            )

    def unread(self, ids: np.ndarray) -> str:
        """The first of `ids` that the teacher cannot read, by name; empty where there are none."""
        unread = [i for i in ids.tolist() if not self.reads(i)]
        return ", ".join(f"{self.foreign.get(i)!r} (id {i})" for i in unread[:3])


def shared_by(vocabularies: Sequence[SharedVocabulary]) -> SharedVocabulary:
    """What several teachers, all of them, share with their student."""
    foreign = {i: token for each in vocabularies for i, token in each.foreign.items()}
    return SharedVocabulary(min(each.size for each in vocabularies), foreign)


def share(tokenizer: Any, foreign: Iterable[int], head: int | None = None) -> SharedVocabulary:
    """What is shared when the teacher lacks the tokens `foreign` of the student's `tokenizer`, and
    those beyond the `head` rows of its output head."""
    tokens = tokens_of(tokenizer)
    foreign = set(foreign) | {i for i in tokens if head is not None and i >= head}
    return SharedVocabulary(
        size=max(i for i in tokens if i not in foreign) + 1,
        foreign={i: tokens[i] for i in sorted(foreign)},
    )


def probe_texts(tokenizer: Any) -> list[str]:
    """Texts that two tokenizers read alike only when they share their ordinary vocabulary:
    several scripts, and tokens from all over the vocabulary, added ones left out."""
    added = set(added_tokens(tokenizer).values())
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // PROBED_TOKENS))
    spread = [tokenizer.decode([token]) for token in ids if token not in added]
    return [
        *PROBE_TEXTS,
        "\n".join(text for text in spread if "\N{REPLACEMENT CHARACTER}" not in text),
    ]


def check_reading(teacher: str, text: str, seen: list[int], tokenizer: Any) -> None:
    """Raises TokenizerMismatchError unless the student's `tokenizer` reads `text` as `seen`, the
    ids that the teacher reads it as."""
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    if seen == expected:
        return
    pairs = enumerate(zip(seen, expected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(seen), len(expected)))
    raise TokenizerMismatchError(
        f"`{teacher}` reads {text[:40]!r}… as {len(seen)} tokens and the student's tokenizer "
        f"({getattr(tokenizer, 'name_or_path', '?')}) as {len(expected)}; they part at token "
        f"{at}: {seen[at : at + 3]} and {expected[at : at + 3]}. Its token ids would mean other "
        f"tokens. Use a teacher with the student's tokenizer, or {CROSS}."
    )


def compare_tokenizers(teacher: str, theirs: Any, tokenizer: Any) -> set[int]:
    """The ids of the student's `tokenizer` that are foreign to the teacher's.

    Tokens added to the student's, or renamed, are; where an ordinary token differs, or text is
    read otherwise, raises TokenizerMismatchError with the first ids that differ.
    """
    own, other = tokens_of(tokenizer), tokens_of(theirs)
    added = set(added_tokens(tokenizer).values())
    foreign = {number for number, token in own.items() if other.get(number) != token}
    wrong = sorted(foreign - added)
    if wrong:
        named = "; ".join(f"{i} is {own[i]!r}, the teacher's {other.get(i)!r}" for i in wrong[:3])
        raise TokenizerMismatchError(
            f"`{teacher}` and the student's tokenizer ({getattr(tokenizer, 'name_or_path', '?')}) "
            f"differ in {len(wrong)} ordinary tokens; the first ids: {named}. Token ids would mean "
            f"other tokens. Use a teacher with the student's tokenizer, or {CROSS}."
        )
    for text in probe_texts(tokenizer):
        check_reading(teacher, text, theirs(text, add_special_tokens=False)["input_ids"], tokenizer)
    return foreign


def other_tokenizer(teacher: TeacherArgs) -> Any:
    """The teacher's own tokenizer. Raises CaptureError for one that cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(teacher.reads_with, **teacher.origin)
    except (OSError, ValueError, KeyError) as error:
        remedy = (
            "Put its tokenizer's files beside its weights"
            if teacher.server is None
            else "Name its folder, or the model's name on the hub, as `tokenizer` beside `server`"
        )
        raise CaptureError(
            f"The tokenizer of the teacher `{teacher.reads_with}` cannot be read, and "
            "`distill.cross_tokenizer` needs it: "
            f"{type(error).__name__}: {str(error)[:300]}. {remedy}, or learn from its text: "
            "`distill.teacher: text`."
        ) from error


@contextmanager
def served_otherwise(teacher: TeacherArgs) -> Iterator[None]:
    """What to do where a server turns out not to read as the tokenizer that is named for it."""
    try:
        yield
    except TokenizerMismatchError as error:
        raise TokenizerMismatchError(
            f"`{teacher.model}` is served with another tokenizer than `{teacher.reads_with}` has, "
            "which was to be its own (`tokenizer` beside `server`; without it `model`). Name that "
            "of what is served. They differ so, where the student's means the latter: "
            f"{str(error).partition(' Use a teacher ')[0]}"
        ) from error


def local_vocabulary(teacher: TeacherArgs, tokenizer: Any) -> tuple[SharedVocabulary, bool]:
    """(what a Hugging Face model shares with the student's tokenizer, whether it has a tokenizer
    to be compared). Reads no weights.

    Raises TokenizerMismatchError, and CaptureError when its head lacks ordinary tokens or its
    tokenizer cannot be read.
    """
    path = teacher.model
    try:
        head = AutoConfig.from_pretrained(path, **teacher.origin).get_text_config().vocab_size
    except (OSError, ValueError, AttributeError):
        head = None
    try:
        theirs = AutoTokenizer.from_pretrained(path, **teacher.origin)
    except (OSError, ValueError, KeyError) as error:
        if any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
            raise CaptureError(
                f"The tokenizer of the teacher `{path}` cannot be read, so whether it reads text "
                f"as the student is unknown: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        theirs = None
    foreign = set() if theirs is None else compare_tokenizers(path, theirs, tokenizer)
    shared = share(tokenizer, foreign, head)
    added = added_tokens(tokenizer).values()
    beyond = len(set(shared.foreign) - foreign - set(added))
    if beyond:
        raise CaptureError(
            f"The teacher `{path}` has logits for {head} tokens, and {beyond} ordinary tokens of "
            "the student's tokenizer lie beyond: they do not share a vocabulary. Use a teacher "
            "with the student's tokenizer."
        )
    return shared, theirs is not None
