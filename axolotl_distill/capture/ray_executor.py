"""`--executor ray`: the teacher once in every worker of a Ray cluster.

Batches are made here and graded there, and this process alone writes: so the store is that of one
process, row by row, however many workers there are and whichever of them die.
"""

import logging
from collections import deque
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from axolotl_distill import cluster
from axolotl_distill.capture.crossing import Crossed
from axolotl_distill.capture.graded import batches
from axolotl_distill.capture.grader import Grader, refuse_several
from axolotl_distill.capture.source import Row, Source, window_of
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.store import RecordBatch

log = logging.getLogger(__name__)

# One is graded while the next is on its way.
BATCHES_A_WORKER = 2
# A worker that dies is built again, which loads the teacher; not for ever.
RESTARTS = 3
PATIENCE_SECONDS = 60.0


@contextmanager
def opened_on_ray(
    args: CaptureArgs, vocab_size: int, crossed: Crossed | None = None
) -> Iterator[Source]:
    """The teacher in every worker; `crossed` for one with another tokenizer. Raises ConfigError
    where it cannot be had so, CaptureError where it cannot be loaded."""
    refuse_several(args, "ray")
    cpus = cluster.connect()
    import ray

    gpus = cluster.gpus()
    # A teacher over several devices has those of a node.
    each = 0 if not gpus else (cluster.gpus_of_a_node() if args.teacher.device_map else 1)
    workers = gpus // each if each else cpus
    actor: Any = ray.remote(Grader)
    actor = actor.options(
        num_cpus=0 if each else 1,
        num_gpus=each,
        max_restarts=RESTARTS,
        max_task_retries=-1,
    )
    graders = [actor.remote(args, vocab_size, crossed) for _ in range(workers)]
    try:
        yield RaySource(graders, window_of(args))
    finally:
        for grader in graders:
            ray.kill(grader)


class RaySource:
    """A Source whose batches are graded by actors of the class Grader. Those that the cluster has
    no room for yet, or that still load, join when they are there."""

    def __init__(self, graders: list[Any], window_rows: int):
        self.teacher_seconds = 0.0
        self.workers = len(graders)
        self.window_rows, self._each = window_rows * self.workers, window_rows
        self._joining = {grader.begin.remote(): grader for grader in graders}
        self._idle: deque[Any] = deque()
        self._batch_tokens = 0
        while not self._idle:
            if not self._join(PATIENCE_SECONDS):
                log.warning(
                    "No worker of the Ray cluster has the teacher yet: it has no room, or is slow "
                    "to load. Waiting on."
                )

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises CaptureError for what stopped a worker, and for one that died again
        and again."""
        import ray

        waiting = deque(batches(rows, wanted, self._batch_tokens, self._each))
        busy: dict[Any, Any] = {}
        while waiting or busy:
            self._join(0.0)
            while waiting and self._idle:
                grader = self._idle.popleft()
                batch = {index: rows[index] for index in waiting.popleft()}
                busy[grader.grade.remote(batch)] = grader
            (done,), _ = ray.wait([*busy], num_returns=1)
            self._idle.append(busy.pop(done))
            found, seconds = _said(done)
            self.teacher_seconds += seconds
            yield from ((index, records) for index, records in found if index in wanted)

    def _join(self, patience: float) -> bool:
        """Whether another worker came."""
        import ray

        if not self._joining:
            return False
        came, _ = ray.wait([*self._joining], num_returns=1, timeout=patience)
        for one in came:
            self._batch_tokens = _said(one)
            self._idle.extend([self._joining.pop(one)] * BATCHES_A_WORKER)
        return bool(came)


def _said(reference: Any) -> Any:
    import ray

    try:
        said = ray.get(reference)
    except ray.exceptions.RayError as death:
        raise CaptureError(
            f"A worker of the Ray cluster died more than {RESTARTS} times, or could not be built: "
            f"{death}\nWhat was captured is kept; the same command goes on, with any number of "
            "workers."
        ) from death
    if isinstance(said, str):
        raise CaptureError(said)
    return said
