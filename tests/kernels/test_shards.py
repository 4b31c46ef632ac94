"""Heads of which every process has a part of the vocabulary."""

import pytest
import torch
import torch.multiprocessing
from distill_kernels import (
    DenseLogits,
    DistillSpec,
    VocabShard,
    fused_linear_distill,
)
from support.kernel_cases import make_case, oracle, relative_error

SHARD_CASES = [
    ("forward_kl", "tail_bucket", 1.0, 0.0),
    ("jsd", "tail_bucket", 2.0, 0.1),
    ("adaptive_kl", "renormalize", 2.0, 0.0),
    ("reverse_kl", "dense", 2.0, 0.1),
    ("forward_kl", "sampled", 1.0, 0.0),
]


def sharded_process(rank: int, meeting: str) -> None:
    """A process of a gloo group with its part of the head; the oracle has it whole."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    assert torch.distributed.get_world_size() == 2
    bounds = (0, 37, 101)
    mine = slice(bounds[rank], bounds[rank + 1])
    for divergence, support, temperature, smoothing in SHARD_CASES:
        case = make_case(temperature=temperature, sampled=support == "sampled", bias=True, seed=9)
        teacher = case.teacher
        if support == "dense":
            logits = torch.randn(13, 101, generator=torch.Generator().manual_seed(3)) * 3
            case.teacher, teacher = DenseLogits(logits), DenseLogits(logits[:, mine])
        spec = DistillSpec(
            divergence=divergence,
            temperature=temperature,
            alpha=0.7,
            label_smoothing=smoothing,
            support="tail_bucket" if support == "dense" else support,
        )
        loss, (grad_hidden, grad_weight, grad_bias) = oracle(case, spec)
        hidden = case.hidden.clone().requires_grad_()
        weight = case.weight[mine].clone().requires_grad_()
        bias = case.bias[mine].clone().requires_grad_()
        out = fused_linear_distill(
            hidden,
            weight,
            teacher,
            case.labels,
            spec=spec,
            bias=bias,
            shard=VocabShard(mine.start, torch.distributed.group.WORLD),
        )
        out.loss.backward()
        assert relative_error(out.loss.detach(), loss) < 1e-5
        assert relative_error(hidden.grad, grad_hidden) < 1e-5
        assert relative_error(weight.grad, grad_weight[mine]) < 1e-5
        assert relative_error(bias.grad, grad_bias[mine]) < 1e-5
        whole = fused_linear_distill(
            case.hidden, case.weight, case.teacher, case.labels, spec=spec, bias=case.bias
        )
        for name in ("kd", "ce", "top1_agreement", "entropy"):
            assert getattr(out, name).item() == pytest.approx(getattr(whole, name).item(), rel=1e-5)
    torch.distributed.destroy_process_group()


def test_the_size_of_a_vocabulary_is_summed_where_the_head_is(tmp_path):
    """A group of NCCL serves no tensor on the CPU, as one of gloo serves none on `meta`."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
    )
    try:
        shard = VocabShard(0, torch.distributed.group.WORLD)
        assert shard.whole_size(7, torch.device("cpu")) == 7
        with pytest.raises((RuntimeError, NotImplementedError)):
            shard.whole_size(7, torch.device("meta"))
    finally:
        torch.distributed.destroy_process_group()


def test_vocabulary_parallel_head(tmp_path):
    torch.multiprocessing.spawn(sharded_process, args=(str(tmp_path / "meeting"),), nprocs=2)


def test_shards_refuse_what_they_cannot_do():
    case = make_case()
    shard = VocabShard(0, object())
    args = (case.hidden, case.weight)
    with pytest.raises(ValueError, match="use torch"):
        fused_linear_distill(
            *args, case.teacher, case.labels, spec=DistillSpec(), shard=shard, backend="triton"
        )
    dense = DenseLogits(torch.randn(13, 101))
    with pytest.raises(ValueError, match="adaptive_kl"):
        fused_linear_distill(
            *args, dense, case.labels, spec=DistillSpec(divergence="adaptive_kl"), shard=shard
        )
