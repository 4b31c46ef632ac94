"""`common_tokens`: tokens that both vocabularies have keep their probability; all others are in the
tail. Only where both came to the same token at the same place of the text.

This is what KDFlow, DistillKit and TRL's GOLD do with the likeliest tokens of both, but for this: a
token is its bytes. Compared by name (`Ġthe`, `▁the`), as they do, most tokens of a byte-level and a
SentencePiece vocabulary are missed, and some that are found stand for other bytes.
"""

from axolotl_distill.align.methods.base import VocabularyMap, same_bytes
from axolotl_distill.align.pair import Pair


def build(pair: Pair) -> VocabularyMap:
    return VocabularyMap(same_bytes(pair), alike=True)
