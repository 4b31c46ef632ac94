"""A teacher in this process: any Hugging Face causal language model."""

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.teachers.load import CANNOT_LOAD, explain, input_device, load_causal_lm

LOGIT_BYTES = 256 << 20


class HFTeacher:
    """Runs rows through a model and yields the logits of chosen positions.

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
    def logits(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Tensor]
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """Logits at `positions[i]` (int64 [R_i], ascending) of every row of token ids.

        Yields (row, slice of its positions, fp32 [r, vocab_size]) in pieces that stay below a
        quarter of a GB. Position t's logits are the distribution of token t + 1. The head runs on
        the union of the batch's positions only.
        """
        longest = max(len(row) for row in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
        device = input_device(self.model)
        inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}

        if not self._keeps:
            logits_BSV = self.model(**inputs, use_cache=False).logits
            for index, wanted in enumerate(positions):
                yield from self._pieces(index, logits_BSV[index], wanted)
            return
        kept = torch.unique(torch.cat(list(positions)))
        place = torch.full((longest,), -1, dtype=torch.int64)
        place[kept] = torch.arange(kept.numel())
        # A tensor would be moved to the first device, and the last hidden states may be on another.
        logits_BKV = self.model(**inputs, use_cache=False, logits_to_keep=kept.tolist()).logits
        for index, wanted in enumerate(positions):
            yield from self._pieces(index, logits_BKV[index], place[wanted])

    def _pieces(
        self, index: int, logits_SV: Tensor, wanted: Tensor
    ) -> Iterator[tuple[int, slice, Tensor]]:
        size = max(1, LOGIT_BYTES // (4 * self.vocab_size))
        for start in range(0, wanted.numel(), size):
            part = slice(start, min(start + size, wanted.numel()))
            rows = wanted[part].to(logits_SV.device)
            yield index, part, logits_SV[rows, : self.vocab_size].float()
