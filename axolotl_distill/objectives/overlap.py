"""How many of the student's likeliest tokens are the teacher's."""

import torch
from distill_kernels import DenseLogits, DenseTeacher, SparseTeacher
from distill_kernels.teacher import Teacher as Distribution
from torch import Tensor
from torch.nn.functional import linear

from axolotl_distill.objectives.student import StudentOutput
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.teachers.itself import evaluating

TOP = 16
MOST = 128
"""Positions of a batch: their logits are made, which the loss never does."""


@torch.no_grad()
def top_overlap(
    student: StudentOutput, teacher: Distribution, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """(sum over positions of the overlap, their number): fp32 scalars.

    The overlap of a position is |S ∩ T| / |T|, T the teacher's TOP likeliest tokens, or as many as
    it gives, and S as many of the student's. Of M positions, targets int64 [M], those
    count that have a target and of which the teacher says something; MOST of them at even distances
    stand for all.
    """
    rows = (targets != IGNORE).nonzero().squeeze(1)
    if rows.numel() > MOST:
        rows = rows[torch.arange(MOST, device=rows.device) * rows.numel() // MOST]
    theirs = _of_teacher(teacher, rows)
    own = _of_student(student, rows, theirs.shape[1])
    known = theirs >= 0
    shared = ((own[:, :, None] == theirs[:, None, :]).any(1) & known).sum(1)
    size = known.sum(1)
    share = shared / size.clamp_min(1)
    return share.float().sum(), (size > 0).float().sum()


def _of_student(student: StudentOutput, rows: Tensor, k: int) -> Tensor:
    states = student.states[rows]
    if student.head is not None:
        # Dropout within the head would draw.
        with evaluating(student.head.module):
            states = student.head.transform(student.head.module(states).float())
    return states.topk(k, -1).indices


def _of_teacher(teacher: Distribution, rows: Tensor) -> Tensor:
    if isinstance(teacher, SparseTeacher):
        ids, logprobs = teacher.ids[rows], teacher.logprobs[rows]
        return ids.gather(1, logprobs.topk(min(TOP, ids.shape[1]), -1).indices)
    if isinstance(teacher, DenseLogits):
        logits = teacher.logits[rows]
    else:
        assert isinstance(teacher, DenseTeacher)
        with torch.autocast(rows.device.type, enabled=False):
            made = linear(teacher.hidden[rows], teacher.weight, teacher.bias)
        logits = teacher.logit_transform(made.float())
    return logits.topk(min(TOP, logits.shape[1]), -1).indices
