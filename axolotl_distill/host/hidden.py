"""`distill.hidden_states` within Axolotl: its layers, found before a weight is read; its
projections, which learn at a rate of their own and lie beside a checkpoint, never in the model."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.hidden import HiddenArgs, paired
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.compat import world_size
from axolotl_distill.host.findings import Finding
from axolotl_distill.objectives.hidden import HiddenObjective

FILE = "distill_projections.safetensors"
ONE_PROCESS = "was not compared with one process yet. Train in one process, or remove the block."


@dataclass(frozen=True)
class HiddenPlan:
    """pairs: (layer of the student, layer of the teacher); widths: of student and teacher."""

    args: HiddenArgs
    pairs: list[tuple[int, int]]
    widths: tuple[int, int]

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        return tuple(other for _, other in self.pairs)


def hidden_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with `hidden_states` and was not shown to go with it. Works before
    Axolotl has validated the config, and after."""
    if args.hidden_states is None:
        return
    for key in ("fsdp_config", "fsdp", "deepspeed"):
        if cfg.get(key):
            yield Finding(key, f"`{key}` with `distill.hidden_states`", ONE_PROCESS, "")
    if world_size() > 1:
        yield Finding(
            "distill.hidden_states",
            f"`distill.hidden_states` in {world_size()} processes",
            ONE_PROCESS,
            "",
        )
    if cfg.get("torch_compile"):
        yield Finding(
            "torch_compile",
            "`torch_compile` cannot be combined with `distill.hidden_states`,",
            "which looks into the layers as they run.",
            "Remove one of the two.",
        )


def hidden_plan(cfg: Any, args: DistillArgs) -> HiddenPlan | None:
    """The layers that are paired, as the configs of student and teacher have them.

    Raises ConfigError for layers that are not there."""
    if args.hidden_states is None:
        return None
    assert isinstance(args.teacher, TeacherArgs)
    student = AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    ).get_text_config()
    teacher = student
    if not args.teacher.self:
        teacher = AutoConfig.from_pretrained(args.teacher.model, **args.teacher.origin)
        teacher = teacher.get_text_config()
    try:
        pairs = paired(args.hidden_states, student.num_hidden_layers, teacher.num_hidden_layers)
    except ValueError as error:
        raise ConfigError(f"`distill.hidden_states.pairs`: {error}.") from None
    return HiddenPlan(args.hidden_states, pairs, (student.hidden_size, teacher.hidden_size))


def projections_of(model: Any) -> nn.ParameterList | None:
    """The projections that learn with `model`, however it is wrapped; None where there are none."""
    for module in model.modules():
        if isinstance(module, HiddenObjective) and len(module.projections):
            return module.projections
    return None


def give_own_rate(optimizer: torch.optim.Optimizer, model: Any, rate: float | None) -> None:
    """Puts the projections into a group of their own, with a rate and without decay of weights;
    without a rate they stay where they are. To be called before a schedule is made.

    Raises ConfigError where the optimizer does not have them.
    """
    projections = projections_of(model)
    if projections is None:
        return
    own = {id(weight) for weight in projections}
    learnt = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not own <= learnt:
        raise ConfigError(
            f"The optimizer ({type(optimizer).__name__}) does not have the projections of "
            "`distill.hidden_states`, which would never learn. Use `optimizer: adamw_torch`."
        )
    if rate is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in own]
    optimizer.add_param_group({"params": list(projections), "lr": rate, "weight_decay": 0.0})


def save_projections(model: Any, folder: str) -> None:
    """Beside what was saved of the model."""
    projections = projections_of(model)
    if projections is None:
        return
    tensors = {str(at): weight.detach().cpu() for at, weight in enumerate(projections)}
    save_file(tensors, Path(folder) / FILE)


def load_projections(model: Any, folder: str) -> None:
    """Takes them up where a checkpoint left them. Raises ConfigError where they are not there, or
    are of other layers."""
    projections = projections_of(model)
    if projections is None:
        return
    path = Path(folder) / FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no {FILE}: it was trained without the projections of "
            "`distill.hidden_states`. Begin anew, or remove the block."
        )
    tensors = load_file(path)
    shapes = {str(at): weight.shape for at, weight in enumerate(projections)}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise ConfigError(
            f"{path} is of other pairs than `distill.hidden_states` has now. Use those of the "
            "checkpoint, or begin anew."
        )
    with torch.no_grad():
        for at, weight in enumerate(projections):
            weight.copy_(tensors[str(at)])
