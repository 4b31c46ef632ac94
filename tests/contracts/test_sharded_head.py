"""Fault 3 of test_peer_faults.py: a head that FSDP2 shards as a unit of its own."""

import pytest
import torch
import torch.multiprocessing
from distill_kernels import DistillSpec
from support.kernel_cases import relative_error
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from axolotl_distill.train.forward import LossSettings, attach_distill_forward

VOCAB = 300


def student() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def batch(rank: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    tokens = torch.randint(0, VOCAB, (2, 9 + rank), generator=g)
    entries = torch.randint(0, 2**22, (*tokens.shape, 1), generator=g, dtype=torch.int32)
    ids = torch.randint(0, VOCAB, (*tokens.shape, 1), generator=g, dtype=torch.int32)
    tail = torch.randint(-2000, 2000, tokens.shape, generator=g, dtype=torch.int16)
    return {
        "input_ids": tokens,
        "labels": tokens.clone(),
        # ids of 300 tokens take 9 bits, so 23 are the value's
        "teacher_entries": (ids << 23) | entries,
        "teacher_tail": tail,
        "num_items_in_batch": 16 + 18,
    }


def attach(model: LlamaForCausalLM) -> None:
    spec = DistillSpec(temperature=2.0, alpha=0.7, reduction="sum")
    attach_distill_forward(model, LossSettings(spec, "torch", VOCAB, sampled=False))


def process(rank: int, meeting: str, own_unit: bool) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    whole = student()
    attach(whole)
    for each in range(2):
        whole(**batch(each)).loss.backward()

    mesh = init_device_mesh("cpu", (2,))
    model = student()
    attach(model)
    if own_unit:
        fully_shard(model.lm_head, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    assert isinstance(model.lm_head.weight, DTensor)
    for _ in range(2):  # the second forward finds the plan of the first
        model.zero_grad()
        model(**batch(rank)).loss.backward()
    for name, parameter in whole.named_parameters():
        gradient = dict(model.named_parameters())[name].grad.full_tensor()
        # FSDP averages over ranks; the loss is already divided by the tokens of all of them.
        assert relative_error(2 * gradient, parameter.grad) < 1e-5, name
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("own_unit", [True, False])
def test_03_a_sharded_head_is_gathered_where_its_forward_would_be(tmp_path, own_unit):
    arguments = (str(tmp_path / "meeting"), own_unit)
    torch.multiprocessing.spawn(process, args=arguments, nprocs=2)
