"""`embedding`: a sparse projection of the vocabulary, in closed form: row t is one-hot at the first
of the student's tokens into which the student cuts the text of t.

    p(s) = Σ p(t) [s = first(t)]

It is what `mergekit-tokensurgeon` offers for a head with `first_last`, read the other way round.
Its mean over all pieces, and its sums weighted by place, give probability to tokens that cannot
come next. Nothing is learnt: a projection that is trained has no place in a store. Special tokens
go to those of the same role; a part of a character that is no token of the student's goes to the
tail.
"""

from axolotl_distill.align.methods.base import VocabularyMap
from axolotl_distill.align.pair import Pair


def build(pair: Pair) -> VocabularyMap:
    return VocabularyMap(pair.firsts)
