"""Two tokenisations of one text: bytes of tokens, spans that both bound, and what a teacher's
distribution over its own tokens says of the student's. Pure functions; neither torch nor
transformers."""

from axolotl_distill.align.conversation import Segment, pair_rows
from axolotl_distill.align.pair import Pair
from axolotl_distill.align.pieces import Pieces
from axolotl_distill.align.spans import Spans, align

__all__ = ["Pair", "Pieces", "Segment", "Spans", "align", "pair_rows"]
