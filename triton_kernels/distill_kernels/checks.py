"""Refuses inputs that cannot give a right loss."""

from dataclasses import fields

import torch
from torch import Tensor

from distill_kernels.spec import IGNORE, DistillSpec
from distill_kernels.task import Inputs, Task
from distill_kernels.teacher import SparseTeacher, Teacher

ROUNDED_UP = 1e-2
"""Log-probabilities a little above 0 are rounding (bf16 near 1 has steps of 0.008)."""


def check_head(inputs: Inputs) -> None:
    """Raises ValueError when the parts of the head do not fit each other."""
    hidden, weight, bias, left, right = inputs
    if hidden.dim() != 2 or len(weight.shape) != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected [N, D] "
            "and [V, D]"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"bias {tuple(bias.shape)}: expected [{weight.shape[0]}]")
    if left is not None and right is not None:
        rank = left.shape[-1]
        if left.shape != (hidden.shape[0], rank) or right.shape != (weight.shape[0], rank):
            raise ValueError(
                f"low_rank left {tuple(left.shape)} and right {tuple(right.shape)}: expected "
                f"[{hidden.shape[0]}, r] and [{weight.shape[0]}, r]"
            )


def check_devices(inputs: Inputs, task: Task) -> None:
    """Raises ValueError, with its name, for a tensor that is not where hidden is."""
    tensors = {"labels": task.labels, "weights": task.weights}
    tensors |= {name: getattr(inputs, name) for name in ("bias", "weight")}
    tensors |= {f"low_rank.{name}": getattr(inputs, name) for name in ("left", "right")}
    tensors |= {f"teacher.{f.name}": getattr(task.teacher, f.name) for f in fields(task.teacher)}
    device = inputs.hidden.device
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device}, hidden on {device}: bring them to one device"
            )


def check_shapes(
    num_rows: int, teacher: Teacher, labels: Tensor, spec: DistillSpec, weights: Tensor | None
) -> None:
    """Raises ValueError when rows do not match, the teacher lacks what the support needs, or
    weights would need a gradient."""
    sizes = {"labels": labels.shape[0], "teacher": teacher.num_rows}
    if weights is not None:
        if weights.dim() != 1 or not weights.is_floating_point():
            raise ValueError(
                f"weights {tuple(weights.shape)} of {weights.dtype}: expected floats [N]"
            )
        if weights.requires_grad:
            raise ValueError("weights requires a gradient, and none flows into it; detach it")
        sizes["weights"] = weights.shape[0]
    for name, size in sizes.items():
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


def check_values(
    vocab_size: int, teacher: Teacher, labels: Tensor, spec: DistillSpec, weights: Tensor | None
) -> None:
    """Raises ValueError for an id or label outside the student's vocabulary, an id that stands
    twice in a row, what cannot be a log-probability, and a weight below 0 or not finite.

    On CUDA this does not wait for the device: a wrong one stops the process with a device-side
    assertion that carries the message.
    """
    given = labels != IGNORE
    _require(
        (~given | ((labels >= 0) & (labels < vocab_size))).all(),
        f"labels holds a token outside the student's vocabulary of {vocab_size}; -100 = none",
    )
    if weights is not None:
        _require(
            (~given | ((weights >= 0) & (weights < torch.inf))).all(),
            "weights holds a number that is below 0 or not finite, in a row with a label",
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
    entry = teacher.ids >= 0
    _require(
        (~entry | (teacher.logprobs <= ROUNDED_UP)).all(),
        "teacher.logprobs holds a number above 0, or NaN: expected log-probabilities, in nats",
    )
    if spec.support == "tail_bucket":
        assert teacher.tail_logprob is not None  # check_shapes sees to it
        _require(
            (~entry.any(-1) | (teacher.tail_logprob <= ROUNDED_UP)).all(),
            "teacher.tail_logprob holds a number above 0, or NaN: expected the log of a mass",
        )
    else:
        some = (entry & (teacher.logprobs > -torch.inf)).any(-1)
        _require(
            (~entry.any(-1) | some).all(),
            f"teacher.logprobs has a row whose entries are all -inf: support={spec.support!r} "
            "needs some mass on them; give the row no entries (ids -1), or use 'tail_bucket'",
        )


def _require(condition: Tensor, message: str) -> None:
    if condition.is_cuda:
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
