"""What a capture would store of a teacher with another tokenizer, made while the student trains.

The records are the capture's own, by its own code and in its own bits, of one micro-batch at a
time; they go to the loss as those of a store do.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from axolotl_distill.align import Pair
from axolotl_distill.align.methods import METHODS
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.cross import CrossSource
from axolotl_distill.config.distill import Support
from axolotl_distill.signal.batch import ENTRIES, TAIL, supervised_positions
from axolotl_distill.signal.paired import paired_rows
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.signal.source import StoredSignal
from axolotl_distill.teachers.base import Teacher


class SpanSignal:
    """A SignalSource: the records of `distill.cross_tokenizer`, of those methods that make some.

    teacher  whose vocab_size is that of its own tokenizer
    k        entries of a record, at most
    method   span, or one of METHODS
    want     what a teacher is asked for that names its likeliest tokens only; None: all it says
    """

    support: Support = "tail_bucket"

    def __init__(self, teacher: Teacher, k: int, method: str = "span", want: Want | None = None):
        self.teacher, self.k, self.method, self.want = teacher, k, method, want
        self._source: CrossSource | None = None

    def settle(self, survey: Survey) -> None:
        """Takes up what all of the text shows of both tokenizers; to be called before the first
        batch."""
        pair = Pair(survey.teacher, survey.student, survey.ends)
        doubtful = pair.doubtful(survey.occurrences, survey.open_ends)
        mapping = METHODS[self.method](pair) if self.method in METHODS else None
        self._source = CrossSource(
            self.teacher,
            pair,
            doubtful,
            k=self.k,
            batch_tokens=None if self.want else 1,
            mapping=mapping,
            want=self.want,
        )
        self._stored = StoredSignal(len(survey.student), self.support, 1.0)

    @torch.compiler.disable
    def signal(
        self, columns: Mapping[str, Tensor], rows: Tensor, inputs: Mapping[str, Any]
    ) -> Signal:
        """See SignalSource. Raises what CrossSource does."""
        assert self._source is not None, "the host settles it once it has the datasets"
        size = inputs["input_ids"].numel()
        if self._source.batch_tokens is not None:
            # As many tokens at once as the student has, for whom there is memory.
            self._source.batch_tokens = size
        found = paired_rows(columns, inputs)
        texts: dict[int, dict[str, Any]] = {number: row.texts for number, row in found.items()}
        records = dict(self._source.records(texts, texts.keys()))
        longest = max((int(batch.lengths.max()) for batch in records.values()), default=1)
        entries, tail = ENTRIES.filled(1, size, longest), TAIL.filled(1, size)
        for number, batch in records.items():
            row = found[number]
            at = row.at[supervised_positions(row.texts["labels"])]
            held = np.arange(longest) < batch.lengths[:, None]
            ours = ENTRIES.filled(len(at), longest)
            ours[held] = batch.entries.view(np.int32)
            entries[0, at], tail[0, at] = ours, batch.tail[:, 0]
        made = {
            column.name: torch.from_numpy(values).to(rows.device)
            for column, values in ((ENTRIES, entries), (TAIL, tail))
        }
        return self._stored.signal(made, rows, inputs)
