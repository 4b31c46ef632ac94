"""`filter:` of a recipe."""

from axolotl_distill.block import Block


class FilterArgs(Block):
    """What is kept of the trajectories, and in which form."""

    output: str
