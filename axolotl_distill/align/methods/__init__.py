"""Maps from a teacher's tokens to a student's, one file each. What they are worth beside `span` is
in docs/cross-tokenizer.md: none knows what follows a token, and all are wrong on numerals."""

from collections.abc import Callable

from axolotl_distill.align.methods import common_tokens, embedding, min_ed
from axolotl_distill.align.methods.base import VocabularyMap
from axolotl_distill.align.pair import Pair

METHODS: dict[str, Callable[[Pair], VocabularyMap]] = {
    "common_tokens": common_tokens.build,
    "min_ed": min_ed.build,
    "embedding": embedding.build,
}

__all__ = ["METHODS", "VocabularyMap"]
