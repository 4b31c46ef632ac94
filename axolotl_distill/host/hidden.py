"""`distill.hidden_states` within Axolotl: its layers, found before a weight is read; its
projections, which learn at a rate of their own and lie beside a checkpoint, never in the model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.hidden import HiddenArgs, paired
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, StoreError
from axolotl_distill.host.findings import Finding
from axolotl_distill.objectives.hidden import HiddenObjective
from axolotl_distill.store import TeacherStore
from axolotl_distill.store.payloads.hidden import Hidden, hidden_of

FILE = "distill_projections.safetensors"
SHARDED = (
    "were not compared with one process: they shard the projections with the model, and those are "
    "saved and taken up whole.",
    "Train in one process or with DDP (`accelerate launch`, without FSDP and DeepSpeed), or remove "
    "the block.",
)


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
            yield Finding(key, f"`{key}` and `distill.hidden_states`", *SHARDED)
    if cfg.get("torch_compile"):
        yield Finding(
            "torch_compile",
            "`torch_compile` cannot be combined with `distill.hidden_states`,",
            "which looks into the layers as they run.",
            "Remove one of the two.",
        )


def check_hidden_trainer(trainer: Any) -> None:
    """Raises ConfigError where the launcher shards the model, whatever the YAML says."""
    kind = trainer.accelerator.distributed_type
    kind = str(getattr(kind, "value", kind))
    if kind in ("FSDP", "DEEPSPEED"):
        raise ConfigError(f"{kind} is in force, and `distill.hidden_states`: " + " ".join(SHARDED))


def hidden_plan(
    cfg: Any, args: DistillArgs, stores: Callable[[], Sequence[TeacherStore]] = tuple
) -> HiddenPlan | None:
    """The layers that are paired, as the configs of student and teacher have them, or the `stores`
    of the run, in which `hidden_store_findings` found them.

    Raises ConfigError for layers that are not there."""
    if args.hidden_states is None:
        return None
    depth, width = _stack(student_config(cfg))
    if args.teacher == "store":
        there = hidden_of(stores()[0].manifest.payloads)
        assert there is not None
        teacher = there.depth, there.width
    else:
        assert isinstance(args.teacher, TeacherArgs)
        teacher = (depth, width) if args.teacher.self else _stack(teacher_config(args.teacher))
    pairs = pairs_of(args.hidden_states, depth, teacher[0])
    return HiddenPlan(args.hidden_states, pairs, (width, teacher[1]))


def hidden_store_findings(cfg: Any, args: DistillArgs, store: TeacherStore) -> Iterator[Finding]:
    """Why a store does not have the layers that the student is to follow."""
    if args.hidden_states is None or args.teacher != "store":
        return
    there = hidden_of(store.manifest.payloads)
    if there is None:
        kinds = ", ".join(payload.kind for payload in store.manifest.payloads.each)
        yield Finding(
            "distill.hidden_states",
            f"`distill.hidden_states` needs hidden states of the teacher, and {store} has none: a "
            f"record holds {kinds}.",
            "",
            "Capture it with `distill.capture.hidden_states`, name a live teacher in "
            "`distill.teacher`, or remove the block.",
            StoreError,
        )
        return
    try:
        pairs = pairs_of(args.hidden_states, _stack(student_config(cfg))[0], there.depth)
    except ConfigError as error:
        yield Finding.of("distill.hidden_states.pairs", error)
        return
    missing = sorted({other for _, other in pairs} - {*there.layers})
    if missing:
        yield Finding(
            "distill.hidden_states.pairs",
            f"`distill.hidden_states.pairs` needs the teacher's layers {_listed(missing)}, and "
            f"{store} has {_listed(there.layers)} of {there.depth}.",
            "",
            "Pair those that are there, as in `pairs: [[student's, teacher's], …]`, or capture "
            "again with the others in `distill.capture.hidden_states.layers`.",
            StoreError,
        )


def unlike_hidden_findings(args: DistillArgs, stores: Sequence[TeacherStore]) -> Iterator[Finding]:
    """Hidden states that one batch cannot hold together."""
    if args.hidden_states is None:
        return
    first = hidden_of(stores[0].manifest.payloads)
    for store in stores[1:]:
        other = hidden_of(store.manifest.payloads)
        if None not in (first, other) and first != other:
            yield Finding(
                "datasets",
                f"{stores[0]} has hidden states of {_about(first)}, and {store} of "
                f"{_about(other)};",
                "stores of one run must agree in them.",
                "Take one of them out, or capture it again.",
                StoreError,
            )


def hidden_to_capture(cfg: Any, args: DistillArgs, capture: CaptureArgs) -> Hidden | None:
    """What `distill.capture.hidden_states` asks to be stored, as the store's manifest says it.

    Raises ConfigError for layers that the teacher has not, where nothing says which, and where the
    training that the config describes could not be had from the store.
    """
    given = capture.hidden_states
    trains = args.hidden_states if args.teacher == "store" else None
    if given is None:
        if trains is not None:
            raise ConfigError(
                "`distill.hidden_states` would learn from the store, and `distill.capture` stores "
                "no hidden states. Add `hidden_states: {}` to it, or remove the block."
            )
        return None
    depth, width = _stack(teacher_config(capture.teacher))
    needed: set[int] = set()
    if args.hidden_states is not None:
        pairs = pairs_of(args.hidden_states, _stack(student_config(cfg))[0], depth)
        needed = {other for _, other in pairs}
    layers = sorted(needed) if given.layers is None else given.layers
    if not layers:
        raise ConfigError(
            "`distill.capture.hidden_states` names no layers, and there is no "
            f"`distill.hidden_states` that pairs some. Set `layers` to some of the {depth} that "
            f"`{capture.teacher.model}` has, counted from 0."
        )
    if layers[-1] >= depth:
        raise ConfigError(
            f"`distill.capture.hidden_states.layers` names layer {layers[-1]}, and "
            f"`{capture.teacher.model}` has {depth}, counted from 0."
        )
    if trains is not None and needed - {*layers}:
        raise ConfigError(
            f"`distill.hidden_states.pairs` needs the teacher's layers {_listed(sorted(needed))}, "
            f"and `distill.capture.hidden_states.layers` stores {_listed(layers)}. Remove `layers`,"
            " or pair what it names."
        )
    return Hidden(kind="hidden", layers=layers, depth=depth, width=width, dtype=given.dtype)


def pairs_of(args: HiddenArgs, student: int, teacher: int) -> list[tuple[int, int]]:
    """See `paired`. Raises ConfigError for layers that are not there."""
    try:
        return paired(args, student, teacher)
    except ValueError as error:
        raise ConfigError(f"`distill.hidden_states.pairs`: {error}.") from None


def student_config(cfg: Any) -> Any:
    return AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    )


def teacher_config(teacher: TeacherArgs) -> Any:
    return AutoConfig.from_pretrained(teacher.model, **teacher.origin)


def _stack(config: Any) -> tuple[int, int]:
    """(layers, width)"""
    text = config.get_text_config()
    return text.num_hidden_layers, text.hidden_size


def _about(hidden: Hidden | None) -> str:
    assert hidden is not None
    return f"layers {_listed(hidden.layers)}, width {hidden.width}, as {hidden.dtype}"


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


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
