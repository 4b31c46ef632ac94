"""`generate:` of a recipe."""

from axolotl_distill.block import Block


class GenerateArgs(Block):
    """What is asked of the teacher, how often, and where its answers go."""

    output: str
