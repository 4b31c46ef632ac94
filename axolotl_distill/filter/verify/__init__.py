"""Verification: is a trajectory's final answer right?

    step.py            the step: which rows, which reference, which verdict
    extract.py         where the final answer is in a text
    text.py            exact, numeric and regex comparison
    math.py            math-verify
    reasoning_gym.py   reasoning-gym's scorers
    code.py            code against tests, in ../sandbox.py

What can hang or eat memory runs in ../workers.py.
"""

from axolotl_distill.filter.verify.step import VerifyStep

__all__ = ["VerifyStep"]
