"""What a model in a folder says of a few sequences, to be held to what another one says."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from axolotl_distill.checkpoint.folder import quiet_transformers
from axolotl_distill.errors import CheckpointError
from axolotl_distill.teachers.load import CANNOT_LOAD, explain, input_device, resolve_device

SEQUENCES, TOKENS = 3, 24
AMPLIFIED_LOGIT = 64.0


@dataclass(frozen=True)
class Logits:
    """plain      float64 [N, V], as the model gives them
    amplified     float64 [N, V], with the head's input multiplied by `amplifier`: a soft-cap, which
                  small logits do not show, shows in these
    dtype         that the model computes in
    """

    plain: Tensor
    amplified: Tensor
    amplifier: float
    dtype: torch.dtype

    def error(self, tempered: "Logits", temperature: float) -> float:
        """The largest |T z' - z|, relative to the largest |z|; of both kinds the larger one."""
        errors = [
            (temperature * theirs - ours).abs().amax() / ours.abs().amax()
            for ours, theirs in (
                (self.plain, tempered.plain),
                (self.amplified, tempered.amplified),
            )
        ]
        return float(torch.stack(errors).amax())

    def kl(self, tempered: "Logits", temperature: float) -> float:
        """The mean of KL(softmax(z / T) || softmax(z')), nats a position."""
        ours = (self.plain / temperature).log_softmax(-1)
        theirs = tempered.plain.log_softmax(-1)
        return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def loaded(folder: Path, device: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """In evaluation mode. Raises CheckpointError where it cannot be loaded."""
    where = "auto" if device == "auto" else {"": resolve_device(device)}
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, device_map=where
            )
    except CANNOT_LOAD as error:
        raise CheckpointError(
            f"{folder} cannot be loaded, and what cannot be compared is not written: "
            f"{explain(error)}"
        ) from error
    return model.eval()


@torch.no_grad()
def measured(model: PreTrainedModel, amplifier: float | None = None) -> Logits:
    """The logits of random sequences, the same for every model of one vocabulary.

    amplifier  default: the power of 2 that makes the largest logit of a head without a cap at least
               AMPLIFIED_LOGIT
    """
    head = model.get_output_embeddings()
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size, (SEQUENCES, TOKENS), generator=generator)
    called = 0

    def amplify(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal called
        called += 1
        return (args[0] * factor, *args[1:])

    def logits() -> Tensor:
        found = model(input_ids=tokens.to(input_device(model)), use_cache=False).logits
        return found.flatten(0, 1).double().cpu()

    plain = logits()
    factor = amplifier or 1.0
    while amplifier is None and factor * plain.abs().amax() < AMPLIFIED_LOGIT:
        factor *= 2.0
    handle = head.register_forward_pre_hook(amplify)
    try:
        amplified = logits()
    finally:
        handle.remove()
    if called != 1:
        raise CheckpointError(
            f"A {type(model).__name__} calls its output head {called} times in a forward, so what "
            "divides its logits is not known."
        )
    return Logits(plain, amplified, factor, next(iter(model.parameters())).dtype)
