"""Refuses inputs that cannot give a right loss."""

import torch
from torch import Tensor

from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.teacher import SparseTeacher, Teacher


def check_shapes(num_rows: int, teacher: Teacher, labels: Tensor, spec: DistillSpec) -> None:
    """Raises ValueError when rows do not match or the teacher lacks what the support needs."""
    for name, size in (("labels", labels.shape[0]), ("teacher", teacher.num_rows)):
        if size != num_rows:
            raise ValueError(f"{name} has {size} rows, the student has {num_rows}")
    if isinstance(teacher, SparseTeacher):
        if spec.support == "tail_bucket" and teacher.tail_logprob is None:
            raise ValueError(
                "support='tail_bucket' needs teacher.tail_logprob at the spec's temperature; "
                "give it, or use support='renormalize'"
            )
    elif spec.support == "sampled":
        raise ValueError(
            f"support='sampled' needs a SparseTeacher of draws, got a {type(teacher).__name__}; "
            "leave support out"
        )


def check_values(vocab_size: int, teacher: Teacher, labels: Tensor) -> None:
    """Raises ValueError for an id or label outside the student's vocabulary, and for an id that
    stands twice in a row.

    On CUDA this does not wait for the device: a wrong one stops the process with a device-side
    assertion that carries the message.
    """
    _require(
        ((labels == IGNORE) | ((labels >= 0) & (labels < vocab_size))).all(),
        f"labels holds a token outside the student's vocabulary of {vocab_size}; -100 = none",
    )
    if not isinstance(teacher, SparseTeacher):
        return
    _require(
        (teacher.ids < vocab_size).all(),
        f"teacher.ids holds an id outside the student's vocabulary of {vocab_size} tokens",
    )
    ordered = teacher.ids.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    _require(
        ~twice.any(),
        "teacher.ids names a token twice in one row; add its probabilities and keep one entry",
    )


def _require(condition: Tensor, message: str) -> None:
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
