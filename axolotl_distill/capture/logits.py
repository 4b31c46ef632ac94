"""Records from a model in this process, whose whole distributions are at hand."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from axolotl_distill.capture.records import make_records
from axolotl_distill.capture.source import WINDOW_ROWS, Row
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import RecordBatch
from axolotl_distill.store.payloads import join_batches


class LogitsTeacher(Protocol):
    """See HFTeacher.logits."""

    def logits(
        self, rows: Sequence[Sequence[int]], positions: Sequence[torch.Tensor]
    ) -> Iterator[tuple[int, slice, torch.Tensor]]: ...


class LogitsSource:
    """Runs a window of rows through a teacher, batched by length up to `args.batch_tokens`.

    on_cpu   a batch takes a CPU seconds, and one that is larger gains it nothing: without
             `args.batch_tokens` it gets smaller ones, for what is under way is what a kill costs
    """

    window_rows = WINDOW_ROWS

    def __init__(self, teacher: LogitsTeacher, args: CaptureArgs, on_cpu: bool = False):
        self.teacher = teacher
        self.args = args
        self.batch_tokens = args.batch_tokens or (2048 if on_cpu else 8192)

    def records(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises CaptureError for logits that are not finite."""
        for batch in length_batches(rows, list(rows), self.batch_tokens):
            yield from self._batch({index: rows[index] for index in batch})

    def _batch(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        pieces: dict[int, list[RecordBatch]] = {index: [] for index in rows}
        indices = list(rows)
        for place, part, logits_RV in self.teacher.logits(
            [row["input_ids"] for row in rows.values()],
            [torch.from_numpy(supervised_positions(row["labels"])) for row in rows.values()],
        ):
            index = indices[place]
            if not bool(torch.isfinite(logits_RV).all()):
                raise CaptureError(
                    f"The teacher gave logits that are not finite for row {index}. Capture with "
                    "`distill.capture.teacher.dtype: float32`, or look at that row."
                )
            seed = _seed(self.args.seed, index, part.start)
            pieces[index].append(make_records(logits_RV, self.args, seed))
        for index, parts in pieces.items():
            yield index, join_batches(parts)


def length_batches(
    rows: dict[int, Row], indices: Sequence[int], batch_tokens: int
) -> Iterator[list[int]]:
    """Indices grouped by length, so that rows x longest stays within `batch_tokens`; a longer
    row is a batch of its own."""
    batch: list[int] = []
    for index in sorted(indices, key=lambda index: len(rows[index]["input_ids"])):
        longest = len(rows[index]["input_ids"])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _seed(seed: int, row: int, start: int) -> int:
    """A seed of its own for every piece, so that a resumed capture draws what it would have."""
    return int(np.random.SeedSequence([seed, row, start]).generate_state(1, np.uint64)[0] >> 1)
