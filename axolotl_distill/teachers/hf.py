"""A teacher in this process: any Hugging Face causal language model."""

import inspect
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from distill_kernels import DenseLogits
from torch import Tensor

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.teachers.load import CANNOT_LOAD, explain, input_device, load_causal_lm

LOGIT_BYTES = 256 << 20


class HFTeacher:
    """A Teacher that runs rows through a model.

    `vocab_size` is the number of real token ids: heads padded beyond it are cut to it, so that a
    teacher and a student padded differently agree.
    """

    def __init__(self, teacher: TeacherArgs, *, vocab_size: int):
        name = teacher.model
        try:
            model = load_causal_lm(teacher)
        except CANNOT_LOAD as error:
            raise CaptureError(
                f"The teacher `{name}` (`distill.capture.teacher`) cannot be loaded: "
                f"{explain(error)}"
            ) from error
        self.model = model
        self.vocab_size = vocab_size
        if model.get_output_embeddings().weight.shape[0] < vocab_size:
            raise CaptureError(
                f"The teacher `{name}` has logits for "
                f"{model.get_output_embeddings().weight.shape[0]} tokens, but the student's "
                f"tokenizer has {vocab_size}: they do not share a vocabulary. Use a teacher with "
                "the student's tokenizer."
            )
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> str:
        """cpu, cuda, …: where the logits are."""
        return input_device(self.model).type

    @torch.inference_mode()
    def grade(
        self, rows: Mapping[int, Sequence[int]], positions: Mapping[int, np.ndarray], want: Want
    ) -> Iterator[tuple[int, slice, Signal]]:
        """See Teacher. All rows are one batch, and all tokens are given whatever is enough.

        The logits are fp32 [r, vocab_size], in parts that stay below a quarter of a GB. The head
        runs on the union of the batch's positions only.
        """
        longest = max(map(len, rows.values()))
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows.values()):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
        device = input_device(self.model)
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

        if not self._keeps:
            logits_BSV = self.model(**inputs, use_cache=False).logits
            for logits_SV, number in zip(logits_BSV, rows, strict=True):
                yield from self._parts(number, logits_SV, torch.from_numpy(positions[number]))
            return
        kept = torch.from_numpy(np.unique(np.concatenate([positions[number] for number in rows])))
        place = torch.full((longest,), -1, dtype=torch.int64)
        place[kept] = torch.arange(kept.numel())
        # A tensor would be moved to the first device, and the last hidden states may be on another.
        logits_BKV = self.model(**inputs, use_cache=False, logits_to_keep=kept.tolist()).logits
        for logits_KV, number in zip(logits_BKV, rows, strict=True):
            yield from self._parts(number, logits_KV, place[torch.from_numpy(positions[number])])

    def _parts(
        self, number: int, logits_SV: Tensor, wanted: Tensor
    ) -> Iterator[tuple[int, slice, Signal]]:
        size = max(1, LOGIT_BYTES // (4 * self.vocab_size))
        for start in range(0, wanted.numel(), size):
            part = slice(start, min(start + size, wanted.numel()))
            rows = wanted[part].to(logits_SV.device)
            yield number, part, Signal(DenseLogits(logits_SV[rows, : self.vocab_size].float()))
