"""Inside other machinery: torch.compile, activation checkpointing, a plain training loop."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distill_kernels import (
    DenseLogits,
    DenseTeacher,
    DistillSpec,
    LogitTransform,
    LowRank,
    fused_linear_distill,
)
from distill_kernels.task import Task
from support.kernel_cases import make_case, relative_error
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[2]


class Student(torch.nn.Module):
    """A backbone of one layer and a head with a low-rank term."""

    def __init__(self, case, spec):
        super().__init__()
        self.case, self.spec = case, spec
        self.layer = torch.nn.Linear(16, 16)
        self.weight = torch.nn.Parameter(case.weight.clone())
        self.down = torch.nn.Parameter(torch.randn(2, 16) * 0.1)
        self.up = torch.nn.Parameter(torch.randn(101, 2) * 0.1)

    def forward(self, x):
        hidden = self.layer(x).tanh()
        out = fused_linear_distill(
            hidden,
            self.weight,
            self.case.teacher,
            self.case.labels,
            spec=self.spec,
            low_rank=LowRank(hidden @ self.down.t(), self.up),
            logit_transform=LogitTransform(softcap=20.0),
            backend="torch",
        )
        return out.loss, out.kd, out.entropy


def gradients(model, call):
    model.zero_grad()
    loss, kd, entropy = call(model.case.hidden)
    (loss.sum() * 1.7).backward()
    return [loss.detach(), kd, entropy, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("teacher", ["sparse", "draws", "logits", "dense"])
def test_compiles_without_a_graph_break(reduction, teacher):
    torch.manual_seed(0)
    case = make_case(rows=20, temperature=2.0, sampled=teacher == "draws")
    spec = DistillSpec(divergence="jsd", beta=0.2, temperature=2.0, alpha=0.7, reduction=reduction)
    if teacher == "draws":
        spec = replace(spec, divergence="forward_kl", support="sampled")
    elif teacher == "logits":
        case.teacher = DenseLogits(torch.randn(20, 101))
    elif teacher == "dense":
        transform = LogitTransform(0.5, 9.0)
        case.teacher = DenseTeacher(
            torch.randn(20, 5), torch.randn(101, 5), logit_transform=transform
        )
    model = Student(case, spec)
    expected = gradients(model, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seen, wanted in zip(gradients(model, compiled), expected, strict=True):
        assert relative_error(seen, wanted) < 1e-6


def test_operators_are_what_they_say():
    """torch's own checks of a custom operator: schema, fake tensors, autograd registration."""
    from distill_kernels.graph import _forward, _take_apart

    case = make_case(rows=9)
    hidden, weight, _ = case.leaves(torch.float32)
    spec = DistillSpec(alpha=0.5, reduction="sum")
    task = Task(case.teacher, case.labels, spec, LogitTransform(), "torch")
    torch.library.opcheck(
        _forward,
        ([hidden, weight], *_take_apart(task), [True, True]),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_activation_checkpointing():
    torch.manual_seed(0)
    model = Student(make_case(rows=20), DistillSpec(alpha=0.6))
    expected = gradients(model, model)
    seen = gradients(model, lambda x: checkpoint(model, x, use_reentrant=False))
    for mine, wanted in zip(seen, expected, strict=True):
        assert torch.equal(mine, wanted)


def test_the_documented_training_loop_learns(capsys):
    """docs/pytorch-loop.md, as it is printed there: 40 lines, no Axolotl."""
    text = (ROOT / "docs/pytorch-loop.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(code.splitlines()) <= 40
    torch.manual_seed(0)
    exec(compile(code, "docs/pytorch-loop.md", "exec"), {"__name__": "loop"})
    losses = [float(x) for x in re.findall(r"kd (\d+\.\d+)", capsys.readouterr().out)]
    assert losses[-1] < 0.5 * losses[0]
