"""A student that FSDP2 or ZeRO-3 shards, whole in every process while it writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """While it lasts every process has all weights, so that its forwards are its own: one that
    writes longer than another waits for nobody. All processes enter it together, and it takes the
    room of the weights, in the precision that FSDP or DeepSpeed gathers them in. Weights that
    nothing shards are left alone.

    model  as the trainer's backward knows it: DeepSpeed's engine, DDP's wrapper, or itself
    """
    engine: Any = model
    if hasattr(model, "zero_optimization_stage") and engine.zero_optimization_stage() == 3:
        from deepspeed.runtime.zero import unwrap_model_for_generation

        with unwrap_model_for_generation(model):
            yield
        return
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    groups = [group for unit in units for group in _groups(unit)]
    after_forward = [group.post_forward_mesh_info for group in groups]
    with torch.no_grad():
        for unit in units:
            unit.unshard()
    for group in groups:
        # A forward would give the weights back; torch has no way to ask what was set before.
        group.post_forward_mesh_info = None
    try:
        yield
    finally:
        for group, mesh in zip(groups, after_forward, strict=True):
            group.post_forward_mesh_info = mesh
        for unit in units:
            unit.reshard()


def _groups(unit: FSDPModule) -> list[Any]:
    return list(unit._get_fsdp_state()._fsdp_param_groups)
