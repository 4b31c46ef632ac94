"""How much of a training step a kernel of vocabulary tiles could skip, on real logits.

    python triton_kernels/benchmarks/tile_sparsity.py

A kernel that keeps no logits multiplies once for the log-sum-exp (U = 2 N D V operations), once
more for the gradient, and then needs the gradient products of those tiles alone that have an
element above rounding: 2U + s U with the head frozen, 2U + 2 s U with it trained, where s is the
share of tiles kept. Chunks of rows take 2U and 3U. So tiles can win only a trained head, and only
where s < 1/2, before anything else is counted.

Teacher SmolLM2-135M-Instruct, student the same with 5 of its 30 layers cut out, the demo's
docstrings. A tile of 128 rows x 128 tokens is skipped where every |dz| of its rows' loss, before
division by the token count, is below 2^-12 (the bound of cut-cross-entropy, arXiv 2411.09009); the
tiles of a sparse teacher's entries are never skipped. "Sorted" numbers the vocabulary by its mean
logit, as that paper does. `lost` is what skipping does to the gradient of the head's weight:
||dW - dW_skipped|| / ||dW||; `rounding` is what storing dz as bf16 does to it.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from common import keep  # noqa: E402
from distill_kernels import DenseLogits, DistillSpec, SparseTeacher, distill_loss  # noqa: E402
from gradient_error import STUDENT, TEACHER, TOKENS, docstrings, hidden_and_head  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

TILE, BOUND, TOP = 128, 2.0**-12, 64
LOSSES = {
    "cross-entropy": {"alpha": 0.0},
    "forward_kl, top-64 + tail": {},
    "forward_kl, dense": {},
    "reverse_kl, dense": {"divergence": "reverse_kl"},
    "jsd, dense": {"divergence": "jsd", "beta": 0.5},
}


def gradient(logits_NV, teacher_NV, labels_N, name: str, temperature: float) -> torch.Tensor:
    """d loss / d logits of every row, fp32 [N, V]."""
    spec = DistillSpec(temperature=temperature, reduction="sum", **LOSSES[name])
    parts = []
    for rows in torch.arange(TOKENS).split(256):
        teacher = DenseLogits(teacher_NV[rows])
        if "top" in name:
            full = (teacher_NV[rows] / temperature).log_softmax(-1)
            top = full.topk(TOP)
            rest = full.scatter(1, top.indices, -torch.inf).logsumexp(-1)
            teacher = SparseTeacher(top.indices, top.values, rest)
        part = logits_NV[rows].clone().requires_grad_()
        distill_loss(part, teacher, labels_N[rows], spec=spec).loss.backward()
        parts.append(part.grad)
    return torch.cat(parts)


def kept_tiles(grad_NV: torch.Tensor, entries_NV: torch.Tensor | None) -> torch.Tensor:
    """bool [N / TILE, V / TILE]: the tiles that a kernel has to multiply."""
    needed = grad_NV.abs() >= BOUND
    if entries_NV is not None:
        needed |= entries_NV
    return needed.unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE)).any(3).any(1)


def main() -> None:
    ids = docstrings(AutoTokenizer.from_pretrained(TEACHER))
    teacher, teacher_head = hidden_and_head(TEACHER, ids)
    hidden, weight = hidden_and_head(STUDENT, ids)
    logits, teacher_logits = hidden @ weight.t(), teacher @ teacher_head.t()
    labels = ids.flatten().roll(-1)
    order = logits.mean(0).argsort(descending=True)
    results = []
    print(f"{'loss':<28}{'T':>3}{'share kept':>12}{'sorted':>9}{'lost':>10}{'rounding':>10}")
    for name in LOSSES:
        for temperature in (1.0, 2.0) if name != "cross-entropy" else (1.0,):
            grad = gradient(logits, teacher_logits, labels, name, temperature)
            entries = None
            if "top" in name:
                chosen = teacher_logits.topk(TOP).indices
                entries = torch.zeros_like(grad, dtype=torch.bool).scatter_(1, chosen, True)
            kept = kept_tiles(grad, entries)
            kept_sorted = kept_tiles(grad[:, order], None if entries is None else entries[:, order])
            exact = grad.t() @ hidden
            mask = kept_sorted.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
            skipped = torch.zeros_like(exact)
            skipped[order] = (grad[:, order] * mask).t() @ hidden
            rounded = grad.bfloat16().float().t() @ hidden
            row = {
                "loss": name,
                "temperature": temperature,
                "share_kept": kept.float().mean().item(),
                "share_kept_sorted": kept_sorted.float().mean().item(),
                "lost": ((skipped - exact).norm() / exact.norm()).item(),
                "rounding": ((rounded - exact).norm() / exact.norm()).item(),
            }
            results.append(row)
            print(
                f"{name:<28}{temperature:>3g}{row['share_kept']:>12.3f}"
                f"{row['share_kept_sorted']:>9.3f}{row['lost']:>10.1e}{row['rounding']:>10.1e}",
                flush=True,
            )
    keep("tile_sparsity", results, Path(__file__).parent / "results")


if __name__ == "__main__":
    main()
