"""The objective of each `distill.cross_tokenizer.method` that compares beside the training."""

from axolotl_distill.align import Pieces
from axolotl_distill.config.cross_tokenizer import CrossTokenizerArgs
from axolotl_distill.objectives.alm import ALMObjective
from axolotl_distill.objectives.crossed import CrossObjective
from axolotl_distill.objectives.gold import GoldObjective
from axolotl_distill.objectives.uld import ULDObjective


def cross_objective(
    args: CrossTokenizerArgs, alpha: float, theirs: Pieces, own: Pieces
) -> CrossObjective:
    """theirs, own  the tokens of teacher and student"""
    if args.method == "uld":
        return ULDObjective(alpha)
    if args.method == "gold":
        weights = None if args.weights is None else (args.weights[0], args.weights[1])
        return GoldObjective(alpha, theirs, own, weights)
    assert args.method == "alm", "span makes records"
    return ALMObjective(alpha, theirs, tau=args.binarization_temperature, threshold=args.threshold)
