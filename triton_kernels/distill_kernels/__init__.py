"""Knowledge distillation fused with a model's output head: one function, dataclasses in and out."""

from distill_kernels.linear import fused_linear_distill
from distill_kernels.reference import distill_loss
from distill_kernels.spec import DistillOutput, DistillSpec
from distill_kernels.teacher import SparseTeacher
from distill_kernels.transform import LogitTransform

__all__ = [
    "DistillOutput",
    "DistillSpec",
    "LogitTransform",
    "SparseTeacher",
    "distill_loss",
    "fused_linear_distill",
]
