"""A teacher in this process: any Hugging Face causal language model."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from distill_kernels import DenseLogits, DenseTeacher
from torch import Tensor
from transformers import PreTrainedModel

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.heads.head import PROBE_TOKENS, FusedHead, plan_head
from axolotl_distill.heads.stack import LayerStates
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.teachers.load import CANNOT_LOAD, explain, input_device, load_causal_lm

LOG = logging.getLogger(__name__)
LOGIT_BYTES = 256 << 20

Graded = Iterator[tuple[int, slice, Signal]]


class ModelTeacher:
    """A Teacher that runs rows through a model that is here.

    `vocab_size` is the number of real token ids: heads padded beyond it are cut to it, so that a
    teacher and a student padded differently agree.
    """

    def __init__(self, model: PreTrainedModel, name: str, *, vocab_size: int):
        self.model, self.name, self.vocab_size = model, name, vocab_size
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._planned = False
        self._head: FusedHead | None = None

    @property
    def device(self) -> str:
        """cpu, cuda, …: where the logits are."""
        return input_device(self.model).type

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """While it lasts the model is the teacher: without a gradient, and in its own types,
        whatever the trainer computes in."""
        with torch.no_grad(), torch.autocast(self.device, enabled=False):
            yield

    def grade(
        self, rows: Mapping[int, Sequence[int]], positions: Mapping[int, np.ndarray], want: Want
    ) -> Graded:
        """See Teacher. All rows are one batch, and all tokens are given whatever is enough.

        The logits are fp32 [r, vocab_size], in parts that stay below a quarter of a GB. The head
        runs on the union of the batch's positions only. Unprojected it does not run: each row comes
        whole, as a DenseTeacher, in the model's own types.
        """
        inputs = self._batch(list(rows.values()))
        if want.unprojected:
            with self.as_teacher():
                head = self._readable_head(inputs["input_ids"])
            with self.as_teacher(), LayerStates(self.model, want.layers) as states:
                if head is not None:
                    hidden_BSD = head.cast(self.model.base_model(**inputs, use_cache=False)[0])
            if head is not None:
                said = []
                with self.as_teacher():  # Whose head it is, too.
                    for row, (number, hidden_SD) in enumerate(zip(rows, hidden_BSD, strict=True)):
                        own = positions[number]
                        layers = states.of_row(row, torch.from_numpy(own))
                        said.append(self._unprojected(head, number, hidden_SD, own, layers))
                yield from said
                return
        if not self._keeps:
            with self.as_teacher(), LayerStates(self.model, want.layers) as states:
                logits_BSV = self.model(**inputs, use_cache=False).logits
            for row, (number, logits_SV) in enumerate(zip(rows, logits_BSV, strict=True)):
                at = torch.from_numpy(positions[number])
                yield from self._parts(number, logits_SV, at, states.of_row(row, at))
            return
        kept = torch.from_numpy(np.unique(np.concatenate([positions[number] for number in rows])))
        place = torch.full((inputs["input_ids"].shape[1],), -1, dtype=torch.int64)
        place[kept] = torch.arange(kept.numel())
        with self.as_teacher(), LayerStates(self.model, want.layers) as states:
            # A tensor would be moved to the first device; the last hidden states may be elsewhere.
            logits_BKV = self.model(**inputs, use_cache=False, logits_to_keep=kept.tolist()).logits
        for row, (number, logits_KV) in enumerate(zip(rows, logits_BKV, strict=True)):
            at = torch.from_numpy(positions[number])
            yield from self._parts(number, logits_KV, place[at], states.of_row(row, at))

    def _batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        input_ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.as_tensor(row)
            attention_mask[index, : len(row)] = 1
        device = input_device(self.model)
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

    def _readable_head(self, input_ids: Tensor) -> FusedHead | None:
        """The head, where its logits are a product with floats that can be read here; found out
        with the first batch, and said where they are not."""
        if not self._planned:
            tokens = input_ids[:1, :PROBE_TOKENS]
            head, why = plan_head(self.model, self.model.forward, tokens, {})
            if head is not None:
                weight = head.base.weight
                if not weight.is_floating_point() or weight.is_meta:
                    head, why = None, "its weight is not there as floats"
                elif head.is_adapted:
                    head, why = None, "it has an adapter"
            if head is None:
                LOG.warning(
                    f"axolotl-distill: the output head of the teacher `{self.name}` cannot be "
                    f"fused with the loss ({why}), so that its logits are made for all of a "
                    "micro-batch's tokens at once, which takes more memory."
                )
            self._head, self._planned = head, True
        return self._head

    def _unprojected(
        self,
        head: FusedHead,
        number: int,
        hidden_SD: Tensor,
        positions: np.ndarray,
        layers: Tensor | None,
    ) -> tuple[int, slice, Signal]:
        size = self.vocab_size
        bias = None if head.base.bias is None else head.base.bias.detach()[:size]
        distribution = DenseTeacher(
            hidden_SD[torch.from_numpy(positions).to(hidden_SD.device)],
            head.base.weight.detach()[:size],
            bias,
            head.transform,
        )
        return number, slice(0, len(positions)), Signal(distribution, layers)

    def _parts(
        self, number: int, logits_SV: Tensor, wanted: Tensor, layers: Tensor | None
    ) -> Graded:
        size = max(1, LOGIT_BYTES // (4 * self.vocab_size))
        for start in range(0, wanted.numel(), size):
            part = slice(start, min(start + size, wanted.numel()))
            rows = wanted[part].to(logits_SV.device)
            logits = DenseLogits(logits_SV[rows, : self.vocab_size].float())
            yield number, part, Signal(logits, None if layers is None else layers[part])


class HFTeacher(ModelTeacher):
    """A ModelTeacher that is loaded as its block says. Raises CaptureError where it cannot be."""

    def __init__(self, teacher: TeacherArgs, *, vocab_size: int):
        name = teacher.model
        try:
            model = load_causal_lm(teacher)
        except CANNOT_LOAD as error:
            message = f"The teacher `{name}` cannot be loaded: {explain(error)}"
            raise CaptureError(message) from error
        super().__init__(model.requires_grad_(False), name, vocab_size=vocab_size)
        size = model.get_output_embeddings().weight.shape[0]
        if size < vocab_size:
            raise CaptureError(
                f"The teacher `{name}` has logits for {size} tokens, but the student's tokenizer "
                f"has {vocab_size}: they do not share a vocabulary. Use a teacher with the "
                "student's tokenizer."
            )
