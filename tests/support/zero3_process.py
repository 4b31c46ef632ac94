"""One of two processes that train with DeepSpeed ZeRO-3; started by test_sharded_head.py."""

import deepspeed
import torch
from support.kernel_cases import relative_error
from support.sharded import attach, batch, student


def main() -> None:
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    whole = student()
    attach(whole)
    for each in range(2):
        whole(**batch(each)).loss.backward()

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    model = student()
    attach(model)
    # A step of plain gradient descent shows the gradients that ZeRO-3 reduced.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    assert torch.distributed.get_world_size() == 2
    assert model.lm_head.weight.numel() == 0, "the head is not partitioned"
    loss = engine(**batch(rank)).loss
    engine.backward(loss)
    engine.step()
    before = dict(student().named_parameters())
    for (name, parameter), ours in zip(whole.named_parameters(), model.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([ours]):
            moved = before[name].detach() - ours.detach()
            # Averaged over ranks; the loss is already divided by the tokens of all of them.
            assert relative_error(2 * moved, parameter.grad) < 1e-3, name
    print(f"rank {rank} agrees", flush=True)


main()
