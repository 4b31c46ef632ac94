"""A teacher that no device holds whole: every process of a run has a part of each of its layers."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from axolotl_distill.heads.stack import layers_of

T = TypeVar("T")


def spread_layers(model: PreTrainedModel, device: str) -> None:
    """Shards the layers of a frozen model that lies on the CPU over all processes (FSDP2): each of
    them is gathered for its own forward, and given back. What is no layer, so the embeddings and
    the head that the fused loss reads, goes to `device` whole.

    A forward is from now on one of all processes: see `level`. Raises ConfigError for a model
    whose layers are not in one list.
    """
    model.requires_grad_(False)
    layers = layers_of(model, "distill.teacher.sharded")
    mesh = init_device_mesh(torch.device(device).type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    within = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = {p for p in model.parameters() if id(p) not in within}
    # Of all layers together, so that one is gathered while another computes.
    fully_shard(model.base_model, mesh=mesh, ignored_params=outside)
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers' wrapper has no type


def level(calls: Sequence[T], device: torch.device) -> Iterator[T | None]:
    """`calls`, then None as often as the process with the most has more of them: as many in every
    process. All of them ask at once."""
    most = torch.tensor(len(calls), device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    yield from calls
    yield from [None] * (int(most) - len(calls))
