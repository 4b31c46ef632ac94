"""Knowledge distillation fused with a model's output head: one function, dataclasses in and out."""

from distill_kernels.backends.reference import distill_loss
from distill_kernels.linear import LowRank, fused_linear_distill
from distill_kernels.matmul import TiledWeight
from distill_kernels.shard import VocabShard
from distill_kernels.spec import DistillOutput, DistillSpec
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher
from distill_kernels.transform import LogitTransform

__all__ = [
    "DenseLogits",
    "DenseTeacher",
    "DistillOutput",
    "DistillSpec",
    "LogitTransform",
    "LowRank",
    "SparseTeacher",
    "TiledWeight",
    "VocabShard",
    "distill_loss",
    "fused_linear_distill",
]
