"""The student as its own teacher: what it was before its adapter learnt anything."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from axolotl_distill.teachers.hf import ModelTeacher


class SelfTeacher(ModelTeacher):
    """A ModelTeacher that is the student with its adapters off, in evaluation mode.

    It is the base model as the student has it, quantised where that is, and in the precision that
    the trainer computes in. The student is left as it was found.

    causal_lm  the student's model within its adapter
    """

    def __init__(self, causal_lm: PreTrainedModel):
        size = causal_lm.get_output_embeddings().weight.shape[0]
        super().__init__(causal_lm, "the student itself", vocab_size=size)

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """See ModelTeacher."""
        with torch.no_grad(), evaluating(self.model), adapters_off(self.model):
            yield


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """While it lasts the model is in evaluation mode; then as it was.

    Not by `eval()` and `train()`: parts of the student may be in evaluation mode all along, and
    a 4-bit layer on a CPU packs its weight anew when it first runs in that mode."""
    trained = [
        module
        for module in model.modules()
        if module.training and type(module).__name__ != "Linear4bit"
    ]
    for module in trained:
        module.training = False
    try:
        yield
    finally:
        for module in trained:
            module.training = True


@contextmanager
def adapters_off(model: torch.nn.Module) -> Iterator[None]:
    """PEFT's own switch takes the adapters' `requires_grad` away and gives it to all of them back,
    under the hooks of whatever synchronises their gradients; this one leaves it alone."""
    layers = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        and not module.disable_adapters
    ]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
