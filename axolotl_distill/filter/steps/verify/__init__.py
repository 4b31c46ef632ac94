"""The step `verify`; what it asks about an answer is in `filter/verify/`."""

from axolotl_distill.filter.steps.verify.args import VerifyArgs
from axolotl_distill.filter.steps.verify.step import VerifyStep

__all__ = ["VerifyArgs", "VerifyStep"]
