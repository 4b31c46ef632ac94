"""What the loss never makes: whole logits, and gradients that nobody wants."""

import torch
from distill_kernels import DistillSpec, fused_linear_distill, sweep
from support.kernel_cases import make_case
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // 4)
        return out


def test_logits_are_never_whole(monkeypatch):
    """Forward and backward together never hold N x V numbers, nor a gradient of a frozen head."""
    monkeypatch.setitem(sweep.CHUNK_BYTES, "cpu", 4 * 2000 * 32)
    rows, vocab, dim = 1024, 2000, 8
    case = make_case(rows=rows, vocab=vocab, dim=dim, k=4)
    hidden = case.hidden.clone().requires_grad_()
    with LargestTensor() as largest:
        out = fused_linear_distill(
            hidden, case.weight, case.teacher, case.labels, spec=DistillSpec(), backend="torch"
        )
        out.loss.backward()
    assert largest.elements <= 32 * vocab + 1
    assert hidden.grad is not None and case.weight.grad is None


def test_no_gradient_work_under_no_grad():
    case = make_case(rows=64, vocab=512, dim=32)
    with torch.no_grad(), LargestTensor() as largest:
        fused_linear_distill(
            case.hidden.requires_grad_(),
            case.weight.requires_grad_(),
            case.teacher,
            case.labels,
            spec=DistillSpec(),
            backend="torch",
        )
    # The buffer of logits and the weight itself are there; a gradient of the weight is not.
    assert largest.elements <= 64 * 512
