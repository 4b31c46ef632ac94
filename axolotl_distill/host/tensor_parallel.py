"""What a student under tensor parallelism lacks in an Axolotl that does not see to it itself.

transformers cuts the layers of its plan into DTensors and leaves the rest (norms, embeddings) as
plain weights, the same in every process. From 0.20 on Axolotl makes DTensors of these too, and all
processes gather what is saved. In 0.19 the norm of a gradient cannot be had of the mixture, and the
process that saves waits for the others for ever.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from axolotl_distill.errors import ConfigError
from axolotl_distill.host.compat import finishes_tensor_parallelism
from axolotl_distill.signal.batch import TARGETS


def replicate_the_rest(model: Any) -> None:
    """Make every plain weight a DTensor that all processes have whole, in place; its module's
    forward sees it as it was."""
    from torch.distributed.tensor import DTensor, Replicate
    from transformers.distributed.tensor_parallel import TensorParallelLayer

    class OnLocalWeights(TensorParallelLayer):
        def should_use_local_tensors(self, module: Any) -> bool:
            return True

    mesh = model._device_mesh
    mesh = mesh["tp"] if mesh.ndim > 1 else mesh
    for module, name, parameter in list(_parameters(model)):
        if isinstance(parameter, DTensor):
            continue
        if "forward" not in vars(module):  # one of the plan's has its own
            OnLocalWeights().install_forward(module, mesh)
        whole = DTensor.from_local(parameter.data, mesh, [Replicate()], run_check=False)
        setattr(module, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))


class WholeAtTheEnd(TrainerCallback):
    """After the last step every process gathers the weights, and the student is as if it had never
    been cut: one process can save it."""

    def on_train_end(self, args: Any, state: Any, control: Any, **passed: Any) -> None:
        model = passed["model"]
        for module, name, parameter in list(_parameters(model)):
            if hasattr(parameter, "full_tensor"):
                whole = parameter.detach().full_tensor()
                setattr(module, name, nn.Parameter(whole, requires_grad=parameter.requires_grad))
        if hasattr(model.config, "distributed_config"):
            del model.config.distributed_config


def check_same_batch(accelerator: Any, weight: torch.Tensor, batches: Sequence[Any]) -> None:
    """Raises ConfigError, in every process, unless all have the batches of a step, whose tokens
    weigh `weight`, alike: of others each would compute a part of another loss."""
    seen = torch.stack(
        [weight.double(), *(batch[TARGETS.name].sum().to(weight).double() for batch in batches)]
    )
    everywhere = accelerator.gather(seen[None])
    if not bool((everywhere == everywhere[0]).all()):
        raise ConfigError(
            "`tensor_parallel_size` is in force, and its processes have unlike batches (weights of "
            f"their tokens: {', '.join(f'{w:g}' for w in everywhere[:, 0].tolist())}). Remove the "
            "plugin or key that hands each process its own."
        )


def save_in_parts(
    trainer: Any, save: Callable[..., None], output_dir: str | None, _internal_call: bool
) -> None:
    """What the first process saves is gathered by all, once in each; `save`: the `save_model` that
    the trainer would have else.

    In 0.19 the others are not asked; in 0.20 Axolotl asks them; in 0.21 both Axolotl and the
    Trainer below do, and they would gather twice.
    """
    if getattr(trainer, "is_distributed_loading_by_transformers", False):
        Trainer.save_model(trainer, output_dir, _internal_call)
        return
    save(output_dir, _internal_call)
    if not finishes_tensor_parallelism() and not trainer.args.should_save:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        model.save_pretrained(output_dir or trainer.args.output_dir, is_main_process=False)


def complete(model: Any) -> None:
    """As `replicate_the_rest`, unless Axolotl does it."""
    if not finishes_tensor_parallelism():
        replicate_the_rest(model)


def to_save() -> list[TrainerCallback]:
    """What lets one process save the student, unless Axolotl lets all of them."""
    return [] if finishes_tensor_parallelism() else [WholeAtTheEnd()]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter
