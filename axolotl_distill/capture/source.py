"""What the capture loop asks for, whoever the teacher is."""

import hashlib
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import RecordBatch

# What a teacher needs at once to make full batches, or to keep a server busy.
WINDOW_ROWS = 256
# Of records that have hidden states, which take thousands of times the memory.
WINDOW_ROWS_OF_HIDDEN = 16

Row = dict[str, Any]


class Source(Protocol):
    """A teacher, or what is left of one, as the capture loop sees it.

    window_rows      how many rows it wants at a time, all of which are held in memory
    workers          processes that grade
    teacher_seconds  so far, of the teacher alone, summed over workers
    """

    window_rows: int
    workers: int
    teacher_seconds: float

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """The records of the rows `wanted`, each as soon as it is there.

        rows    a whole window, which is the same in every run
        wanted  those of it that have a supervised token and no records yet

        A row that was yielded is kept, whatever happens to the ones after it.
        """
        ...


def window_of(args: CaptureArgs) -> int:
    """How many rows a worker needs at a time: of these batches are made, in every run alike."""
    return WINDOW_ROWS if args.hidden_states is None else WINDOW_ROWS_OF_HIDDEN


@dataclass(frozen=True)
class SourceSummary:
    """fingerprint: sha256 over every row's token ids and labels; supervised: how many tokens are;
    lengths: int64 [rows], the tokens of each."""

    fingerprint: str
    supervised: int
    lengths: np.ndarray

    def described(self, **about: Any) -> dict[str, Any]:
        """What a manifest says of the source, and what else is known of it."""
        counts = {"num_rows": len(self.lengths), "supervised": self.supervised}
        return {"fingerprint": self.fingerprint, **counts, **about}


def summarise(rows: Iterable[Row], total: int) -> SourceSummary:
    """Reads every one of `total` rows once; shows that it does where that takes long."""
    digest = hashlib.sha256()
    supervised, lengths = 0, np.zeros(total, np.int64)
    for index, row in enumerate(
        tqdm(rows, total=total, unit=" rows", desc="reading", delay=3.0, mininterval=3.0)
    ):
        for column in ("input_ids", "labels"):
            values = np.asarray(row[column], dtype=np.int64)
            digest.update(np.int64(values.size).tobytes() + values.tobytes())
        supervised += supervised_positions(row["labels"]).size
        lengths[index] = len(row["input_ids"])
    return SourceSummary(digest.hexdigest(), supervised, lengths)
