"""The student as its own teacher: what it was before its adapter learnt anything, or what it is
now, where it is shown more than the student."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from axolotl_distill.teachers.average import Average
from axolotl_distill.teachers.hf import ModelTeacher

OwnWeights = Literal["base", "now", "average"]


class SelfTeacher(ModelTeacher):
    """A ModelTeacher that is the student in evaluation mode, in the precision that the trainer
    computes in and quantised where the student is. The student is left as it was found.

    causal_lm  the student's model within its adapter
    weights    base: with its adapters off, which is the model that they were put on; now: as they
               are when it is asked; average: as `average` has them
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        weights: OwnWeights = "base",
        average: Average | None = None,
    ):
        assert (average is None) is (weights != "average")
        size = causal_lm.get_output_embeddings().weight.shape[0]
        super().__init__(causal_lm, "the student itself", vocab_size=size)
        self.weights, self.average = weights, average

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """See ModelTeacher."""
        own: AbstractContextManager[None] = nullcontext()
        if self.weights == "base":
            own = adapters_off(self.model)
        elif self.average is not None:
            own = self.average.in_place()
        with torch.no_grad(), evaluating(self.model), own:
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
