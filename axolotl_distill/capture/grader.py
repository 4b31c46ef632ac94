"""A teacher in one of several processes: batches in, records out, and errors of ours as words."""

from contextlib import ExitStack

from axolotl_distill.capture.cross import CrossSource
from axolotl_distill.capture.crossing import Crossed
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.source import Row
from axolotl_distill.capture.teacher import opened
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import ConfigError, DistillError
from axolotl_distill.store import RecordBatch

Graded = tuple[list[tuple[int, RecordBatch]], float]
"""The records of a batch, and the seconds that the teacher took for it."""


class Grader:
    """Loads the teacher. What stops it is returned as text: Ray would hide it in an error of its
    own, and a process that ends leaves the others waiting."""

    def __init__(self, args: CaptureArgs, vocab_size: int, crossed: Crossed | None = None):
        self._open = ExitStack()
        self._error: str | None = None
        try:
            self.source: CrossSource | GradedSource
            if crossed is None:
                self.source = self._open.enter_context(opened(args, vocab_size))
            else:
                self.source = self._open.enter_context(crossed.opened(args))
        except DistillError as error:
            self._error = str(error)

    def begin(self) -> int | str:
        """How many tokens it takes at once, or why it takes none."""
        return self._error or self.source.batch_tokens or 0

    def grade(self, rows: dict[int, Row] | None) -> Graded | str:
        """One batch; None is none."""
        if rows is None:
            return [], 0.0
        before = self.source.teacher_seconds
        try:
            found = list(self.source.grade(rows))
        except DistillError as error:
            return str(error)
        return found, self.source.teacher_seconds - before


def refuse_several(args: CaptureArgs, executor: str) -> None:
    """Raises ConfigError for a teacher that cannot be had once a process."""
    teacher = args.teacher
    if teacher.server is not None:
        raise ConfigError(
            f"`--executor {executor}` loads the teacher into every process, and this one is behind "
            "a server: one process keeps it busy (`teacher.server.concurrency`). Leave the option "
            "out."
        )
    if ":" in teacher.device:
        raise ConfigError(
            f"`--executor {executor}` gives each process a device of its own, and `teacher.device: "
            f"{teacher.device}` names one for all. Remove the key."
        )
