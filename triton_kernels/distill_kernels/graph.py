"""The sweep as custom operators: torch.compile sees one node and does not look inside.

An operator takes tensors and numbers only, so inputs and task are taken apart here and put together
again on the other side. Both operators take

    inputs   hidden, weight, then bias, then left and right, those that are there
    tensors  of the task, those that are there
    words    the spec's, the backend, the kind of teacher, and the names of `tensors`
    numbers  the spec's, scale and softcap of the student's transform and of the teacher's
    wants    which of `inputs` get a gradient
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from distill_kernels.autograd import backward, forward
from distill_kernels.chunk import RowValues
from distill_kernels.spec import DistillSpec
from distill_kernels.task import ROWS, Inputs, Task
from distill_kernels.teacher import DenseLogits, DenseTeacher, SparseTeacher
from distill_kernels.transform import LogitTransform

KINDS = {kind.__name__: kind for kind in (SparseTeacher, DenseLogits, DenseTeacher)}
PARTS = {name: [field.name for field in fields(kind)] for name, kind in KINDS.items()}
NUMBERS = [field.name for field in fields(DistillSpec) if field.type is float]
WORDS = [field.name for field in fields(DistillSpec) if field.type is not float]


def run_in_graph(inputs: Inputs, task: Task, wants: tuple[bool, ...]) -> RowValues:
    """As autograd.run, within torch.compile. The head must be whole and held as floats."""
    there = [x for x in inputs if x is not None]
    wanted = [want for x, want in zip(inputs, wants, strict=True) if x is not None]
    out = _forward(there, *_take_apart(task), wanted)
    return RowValues(*out[:5])


@torch.library.custom_op("distill_kernels::forward", mutates_args=())
def _forward(
    inputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    words: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
) -> list[Tensor]:
    """[loss, kd, ce, top1, entropy, gradients of inputs]; one that is not wanted is empty."""
    whole, wanted = Inputs(*_all_five(inputs)), _all_five(wants)
    values, grads = forward(whole, _put_together(tensors, words, numbers), tuple(map(bool, wanted)))
    rows = [values.loss, values.kd, values.ce, values.top1, values.entropy]
    return [*rows, *_there(grads, inputs)]


@_forward.register_fake
def _(
    inputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    words: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
) -> list[Tensor]:
    hidden = inputs[0]
    rows = [hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(5)]
    if _per_row(words):
        return [*rows, *(hidden.new_empty(0) for _ in inputs)]
    grads = [
        None
        if x is None or not want
        else torch.empty_like(x, dtype=x.dtype if i in ROWS else torch.float32)
        for i, (x, want) in enumerate(zip(_all_five(inputs), _all_five(wants), strict=True))
    ]
    return [hidden.new_empty((), dtype=torch.float32), *rows[1:], *_there(grads, inputs)]


@torch.library.custom_op("distill_kernels::backward", mutates_args=())
def _backward(
    inputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    words: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
    grad_loss: Tensor,
) -> list[Tensor]:
    """The gradients of inputs for reduction "none"."""
    whole, wanted = Inputs(*_all_five(inputs)), _all_five(wants)
    task = _put_together(tensors, words, numbers)
    return _there(backward(whole, task, tuple(map(bool, wanted)), grad_loss), inputs)


@_backward.register_fake
def _(
    inputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    words: str,
    numbers: Sequence[float],
    wants: Sequence[bool],
    grad_loss: Tensor,
) -> list[Tensor]:
    return [
        torch.empty_like(x) if want else x.new_empty(0)
        for x, want in zip(inputs, wants, strict=True)
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    leaves, tensors, *ctx.settings = inputs
    ctx.dtypes = [x.dtype for x in leaves]
    ctx.num_tensors = len(tensors)
    per_row = _per_row(ctx.settings[0])
    ctx.save_for_backward(*([*leaves, *tensors] if per_row else output[5:]))


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    words, _, wants = ctx.settings
    saved = list(ctx.saved_tensors)
    if _per_row(words):
        found = _backward(saved[: len(wants)], saved[len(wants) :], *ctx.settings, grads[0])
    else:
        found = [
            (g * grads[0]).to(dtype) if want else None
            for g, dtype, want in zip(saved, ctx.dtypes, wants, strict=True)
        ]
    of_inputs = [g if want else None for g, want in zip(found, wants, strict=True)]
    return of_inputs, [None] * ctx.num_tensors, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _all_five(there: Sequence[Any]) -> tuple[Any, ...]:
    """What belongs to each of Inputs, from what belongs to those that are there."""
    bias = there[2] if len(there) % 2 else None
    low_rank = there[-2:] if len(there) > 3 else (None, None)
    return (*there[:2], bias, *low_rank)


def _there(grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of the inputs that are there; empty where there is none."""
    of_each = zip(grads, _all_five(inputs), strict=True)
    return [x.new_empty(0) if g is None else g for g, x in of_each if x is not None]


def _per_row(words: str) -> bool:
    return words.split()[WORDS.index("reduction")] == "none"


def _take_apart(task: Task) -> tuple[list[Tensor], str, list[float]]:
    kind = type(task.teacher).__name__
    parts: dict[str, Any] = {"labels": task.labels, "weights": task.weights}
    for name in PARTS[kind]:
        parts[name] = getattr(task.teacher, name)
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    words = [getattr(task.spec, name) for name in WORDS]
    numbers = [getattr(task.spec, name) for name in NUMBERS]
    for transform in (task.transform, parts.get("logit_transform", LogitTransform())):
        numbers += [transform.scale, transform.softcap or 0.0]
    return list(tensors.values()), " ".join([*words, task.backend, kind, *tensors]), numbers


def _put_together(tensors: Sequence[Tensor], words: str, numbers: Sequence[float]) -> Task:
    *of_spec, backend, kind = words.split()[: len(WORDS) + 2]
    parts: dict[str, Any] = dict(zip(words.split()[len(WORDS) + 2 :], tensors, strict=True))
    of_student, of_teacher = numbers[-4:-2], numbers[-2:]
    if "logit_transform" in PARTS[kind]:
        parts["logit_transform"] = LogitTransform(of_teacher[0], of_teacher[1] or None)
    named: dict[str, Any] = dict(zip([*WORDS, *NUMBERS], [*of_spec, *numbers[:-4]], strict=True))
    return Task(
        teacher=KINDS[kind](**{name: parts[name] for name in PARTS[kind] if name in parts}),
        labels=parts["labels"],
        weights=parts.get("weights"),
        spec=DistillSpec(**named),
        transform=LogitTransform(of_student[0], of_student[1] or None),
        backend=backend,
    )
