"""The batch: the columns of a row and of a batch, and the one shift from token t + 1 to position t.

A row, as a dataset type makes it, has one value a token:

    input_ids    int64 [S]  Axolotl's
    labels       int64 [S]  Axolotl's: the token itself where it is learnt, else IGNORE
    teacher_pos  int64 [S]  where the record of the token after this one lies; -1 = none
    loss_weight  float [S]  what this token's own loss weighs; 1 in a row without the column
    teacher_choice  int64 [S]  which of several teachers the row learns from, by its number

A batch has what Axolotl's collator gives, and every column below at the position that predicts, so
that whatever cuts or joins batches needs to know of tokens alone. A column's `fill` stands where
there is nothing to learn, in padding too.

    shift_labels     int64 [B, S]     the token after this one where it is learnt, else IGNORE
    target_weight    fp32  [B, S]     what its loss weighs; only in runs that weigh tokens
    teacher_entries  int32 [B, S, K]  bits of its record's uint32 entries, -1 = none
    teacher_tail     int16 [B, S]     its record's tail at the run's temperature, where stored
    teacher_entropy  int16 [B, S]     only with draws
    teacher_hidden   fp16 or int8 [B, S, P, D], teacher_hidden_scale fp32 [B, S, P]: what P layers
                     of the teacher hand on is their product; of stores that have it
    teacher_choice   int64 [B, S]     the number of the teacher whom its row names, -1 = none; only
                                      in runs with several

Those of records are there in runs that read a store. K is that of the batch's longest record, and
1 where it has none: all ranks have the same columns. `labels` stays in the batch as Axolotl made
it, for the Trainer and its callbacks; what looks for a row's answers as they were written reads it
too.

In runs with a live teacher that has another tokenizer a row has teacher_input_ids and
teacher_labels [S'], itself as that teacher reads it, and a batch has these one after another:

    row_number         int64 [B, S]   which of the batch's rows a token is of, -1 = none
    teacher_input_ids  int64 [B, S']  the teacher's tokens of these rows, -1 = none
    teacher_labels     int64 [B, S']  those of them that are learnt, else IGNORE
    teacher_number     int64 [B, S']  which of the batch's rows each is of, -1 = none

Where a teacher reads more of a row than the student, the row has teacher_context [C], tokens, and a
batch has `row_number` and

    teacher_context  int64 [B, C]  what only the teacher reads of these rows, one after another
    context_number   int64 [B, C]  which of the batch's rows each token is of, -1 = none
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

IGNORE = -100


@dataclass(frozen=True)
class Column:
    """A column by its name, the type of its values, and the value that says nothing."""

    name: str
    dtype: DTypeLike
    fill: float

    def filled(self, *shape: int) -> np.ndarray:
        """[*shape] of nothing."""
        return np.full(shape, self.fill, dtype=self.dtype)


POINTERS = Column("teacher_pos", np.int64, -1)
LOSS_WEIGHTS = Column("loss_weight", np.float32, 1.0)
CHOICES = Column("teacher_choice", np.int64, -1)

# Transformers' own name: its Trainer counts this column as it is, and cuts it with a sequence.
TARGETS = Column("shift_labels", np.int64, IGNORE)
WEIGHTS = Column("target_weight", np.float32, 0.0)
ENTRIES = Column("teacher_entries", np.int32, -1)
TAIL = Column("teacher_tail", np.int16, 0)
ENTROPY = Column("teacher_entropy", np.int16, 0)
HIDDEN = Column("teacher_hidden", np.float16, 0)
HIDDEN_SCALE = Column("teacher_hidden_scale", np.float32, 0.0)
NUMBERS = Column("row_number", np.int64, -1)
OTHER_IDS = Column("teacher_input_ids", np.int64, -1)
OTHER_LABELS = Column("teacher_labels", np.int64, IGNORE)
OTHER_NUMBERS = Column("teacher_number", np.int64, -1)
CONTEXTS = Column("teacher_context", np.int64, -1)
CONTEXT_NUMBERS = Column("context_number", np.int64, -1)
OTHERS = (OTHER_IDS, OTHER_LABELS, OTHER_NUMBERS)
CONTEXT = (CONTEXTS, CONTEXT_NUMBERS)
RECORDED = (ENTRIES, TAIL, ENTROPY, HIDDEN, HIDDEN_SCALE)
COLUMNS = (TARGETS, WEIGHTS, *RECORDED, CHOICES, NUMBERS, *OTHERS, *CONTEXT)
"""What is ours in a batch, and no model's to be called with"""


def hidden_column(dtype: str) -> Column:
    """HIDDEN of a store that has it as `dtype`."""
    return replace(HIDDEN, dtype=np.dtype(dtype))


def of_next(values: np.ndarray, column: Column, starts: ArrayLike = ()) -> np.ndarray:
    """What belongs to the token that each position predicts: the shift.

    values  [N], one or several documents, one after another
    starts  int [D], where documents begin; needed where there are several

    Returns `column.dtype` [N]: position n has values[n + 1], and the last of a document, which
    predicts nothing, has `column.fill`.
    """
    found = column.filled(len(values))
    found[:-1] = values[1:]
    starts = np.asarray(starts, dtype=np.int64)
    found[starts[starts > 0] - 1] = column.fill
    return found


def targets(labels: ArrayLike, starts: ArrayLike = ()) -> np.ndarray:
    """int64 [N]: the token after each position where it is learnt, else IGNORE; see `of_next`."""
    return of_next(np.asarray(labels), TARGETS, starts)


def supervised_positions(labels: ArrayLike) -> np.ndarray:
    """int64 [R], ascending: the positions of one row, labels [S], that predict a learnt token.

    A row has a record for each of them, in this order.
    """
    return np.flatnonzero(targets(labels) != IGNORE)


def supervised_counts(labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [rows]: how many positions of each row predict a learnt token.

    labels [N], rows one after another; lengths int [rows], the tokens of each
    """
    stops = np.cumsum(lengths, dtype=np.int64)
    supervised = targets(labels, stops - lengths) != IGNORE
    before = np.concatenate([[0], np.cumsum(supervised, dtype=np.int64)])
    return before[stops] - before[stops - lengths]


def pointers(labels: Sequence[int] | np.ndarray, first: int) -> np.ndarray:
    """`teacher_pos` int64 [S] of a row, labels [S], whose records lie one after another from
    `first`."""
    positions = supervised_positions(labels)
    found = POINTERS.filled(len(labels))
    found[positions] = first + np.arange(positions.size)
    return found
