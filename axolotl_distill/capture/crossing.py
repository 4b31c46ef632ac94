"""Whether a teacher with another tokenizer can grade a text, before a weight is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from axolotl_distill.align import Pair, Pieces, pair_rows
from axolotl_distill.align.methods import METHODS
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS, CrossSource
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.cross_tokenizer import CrossTokenizerArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.signal import Want
from axolotl_distill.store import describe_tokenizer
from axolotl_distill.teachers.tokenizer import other_tokenizer, served_otherwise

REMEDY = (
    "Mend or take out the row; or use a template that leaves the answers as they are, with "
    "`train_on_inputs: false`; for the teacher's side that is "
    "`distill.cross_tokenizer.chat_template`"
)


class Crossing:
    """The two tokenizers of a capture, and what one pass over all of its rows shows of them.

    rows  with input_ids, labels and the teacher's columns

    Raises TokenizerMismatchError for a tokenizer whose tokens have no bytes, and CaptureError for
    one that cannot be read, and for a row whose text is not the same to both, by its number.
    """

    def __init__(self, args: CaptureArgs, cross: CrossTokenizerArgs, rows: Any, tokenizer: Any):
        self.args, self.cross, self.rows = args, cross, rows
        self.teacher, self.student = Pieces(other_tokenizer(args.teacher)), Pieces(tokenizer)
        self.survey = Survey(self.teacher, self.student)
        self.used: set[int] = set()
        shown = tqdm(rows, total=len(rows), unit=" rows", desc="aligning", delay=3.0)
        for index, row in enumerate(shown):
            theirs, own = row[TEACHER_IDS], row["input_ids"]
            try:
                answers = pair_rows(
                    theirs, row[TEACHER_LABELS], own, row["labels"], self.teacher, self.student
                )
                self.survey.add(answers, theirs, own)
            except ValueError as error:
                raise CaptureError(
                    f"Row {index + 1} of the text to capture cannot be given to a teacher with "
                    f"another tokenizer: {error}. {REMEDY}."
                ) from error
            self.used.update(own)

    def reach(self) -> str:
        """Asks a server, before it is asked for the first record, whether it reads as
        `teacher.tokenizer` does, and for how long a row. Returns what somebody should know.

        Raises what ServerTeacher.check does, and CaptureError for a row with a token that the
        server lacks.
        """
        from axolotl_distill.teachers.server import ServerTeacher

        rows, about = self.rows, self.args.teacher
        with ServerTeacher(about, vocab_size=len(self.teacher)) as server:
            longest = max(len(row[TEACHER_IDS]) for row in rows)
            with served_otherwise(about):
                shared = server.check(self.teacher.tokenizer, longest=longest)
        for index, row in enumerate(rows):
            if named := shared.unread(np.unique(np.asarray(row[TEACHER_IDS]))):
                raise CaptureError(
                    f"Row {index + 1} of the text to capture holds {named}, which is another token "
                    f"to the server than to `{about.reads_with}`. Name the tokenizer of what is "
                    "served as `teacher.tokenizer`."
                )
        return server.note

    @property
    def tokenizer(self) -> dict[str, Any]:
        """What a manifest says of the student's."""
        return describe_tokenizer(self.student.tokenizer, len(self.student), self.used)

    @property
    def about_teacher(self) -> dict[str, str]:
        """What a manifest says of the teacher's."""
        return {
            "tokenizer": self.args.teacher.reads_with,
            "tokenizer_fingerprint": self.teacher.fingerprint,
            "cross_tokenizer": self.cross.method,
        }

    def summary(self) -> str:
        """One line for people."""
        spans = self.survey.spans
        total = max(1, sum(spans.values()))
        return (
            f"the teacher reads with its own tokenizer: of {total:,} spans that both bound, "
            f"{spans[1, 1] / total:.1%} are one token of each"
        )

    @property
    def shared(self) -> "Crossed":
        """What every process that grades has to know."""
        survey = self.survey
        return Crossed(
            self.cross.method, self.student.tokenizer, survey.ends, survey.occurrences,
            survey.open_ends,
        )  # fmt: skip


@dataclass(frozen=True)
class Crossed:
    """What one process found out of all rows, for itself and others: see Crossing and Survey. Goes
    by pickle."""

    method: str
    student: Any
    ends: dict[int, int]
    occurrences: np.ndarray
    open_ends: np.ndarray

    @contextmanager
    def opened(self, args: CaptureArgs) -> Iterator[CrossSource]:
        """The teacher, loaded into this process. Raises what Crossing and HFTeacher do."""
        pair = Pair(Pieces(other_tokenizer(args.teacher)), Pieces(self.student), self.ends)
        doubtful = pair.doubtful(self.occurrences, self.open_ends)
        mapping = METHODS[self.method](pair) if self.method in METHODS else None
        size = len(pair.teacher)
        if args.teacher.server is not None:
            from axolotl_distill.teachers.server import ServerTeacher

            want = Want(min(args.k, size), realised=True)
            with ServerTeacher(args.teacher, vocab_size=size) as server:
                yield CrossSource(
                    server, pair, doubtful, k=args.k, batch_tokens=None, mapping=mapping, want=want
                )
            return
        from axolotl_distill.teachers.hf import HFTeacher

        model = HFTeacher(args.teacher, vocab_size=size)
        tokens = args.batch_tokens or (2048 if model.device == "cpu" else 8192)
        yield CrossSource(model, pair, doubtful, k=args.k, batch_tokens=tokens, mapping=mapping)
