"""Whether a teacher reads text as the student does: token ids must mean the same to both."""

from typing import Any

from transformers import AutoTokenizer

from axolotl_distill.errors import TokenizerMismatchError

PROBE_TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?",
    "  two spaces\n\n\ttab, and\r\na line; x = {'a': [1, 22, 333, 4444]}\n",
    "naïve façade, Straße, смысл, 日本語の文章, 한국어, العربية, 🙂👩🏽‍🚀",
)
PROBED_TOKENS = 512


def probe_texts(tokenizer: Any) -> list[str]:
    """Texts that two tokenizers read alike only when they share their vocabulary: several
    scripts, every added token, and tokens from all over the vocabulary.

    A padding token may be the student's alone, for no record is about it.
    """
    added = tokenizer.get_added_vocab()
    padding = tokenizer.pad_token if tokenizer.pad_token != tokenizer.eos_token else None
    names = [token for token in sorted(added, key=added.get) if token != padding]
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // PROBED_TOKENS))
    spread = [tokenizer.decode([token]) for token in ids if token not in added.values()]
    return [
        *PROBE_TEXTS,
        "x".join(names) or "x",
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
        "tokens. Use a teacher with the student's tokenizer."
    )


def check_local_teacher(path: str, tokenizer: Any, *, trust_remote_code: bool = False) -> bool:
    """Hold the tokenizer beside a Hugging Face model to the student's; False when it has none.

    Raises TokenizerMismatchError.
    """
    try:
        own = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return False
    for text in probe_texts(tokenizer):
        check_reading(path, text, own(text, add_special_tokens=False)["input_ids"], tokenizer)
    return True
