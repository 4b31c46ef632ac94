"""`--executor accelerate`: the teacher once in every process of `accelerate launch` or `torchrun`.

The first process reads the text, makes the batches and writes; in rounds it hands every process one
batch, itself among them, and gets the records. While the others are at the next round it writes
those of the last. So the store is that of one process, row by row, however many there are.
"""

import os
import signal
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any, Self

from axolotl_distill.capture.source import Row, Source, window_of
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.store import RecordBatch

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
STRATEGIES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
# The others wait while the first reads its text. Who dies closes its connections, which is noticed.
PATIENCE = timedelta(days=30)
STOP = "stop"


@dataclass
class Ranks:
    """The processes of one launch, as one of them sees it.

    What the launcher said of them is taken out of the environment: Axolotl, which only the first
    one calls, would wait for the others.
    """

    rank: int
    size: int
    local_rank: int
    _said: dict[str, str]
    _joined: bool = field(default=False, init=False)

    @classmethod
    def of_this_launch(cls) -> Self:
        """Raises ConfigError where there was none."""
        missing = [name for name in PLACE[:3] if name not in os.environ]
        if missing:
            raise ConfigError(
                f"`--executor accelerate` needs processes to spread over, and {missing[0]} is not "
                "set. Start it as `accelerate launch --num_processes 8 -m axolotl_distill.cli "
                "capture CONFIG --executor accelerate`, or by torchrun; for one process leave the "
                "option out."
            )
        said = {name: os.environ.pop(name) for name in PLACE if name in os.environ}
        for name in STRATEGIES:
            os.environ.pop(name, None)
        return cls(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_RANK"]), said)

    def serve(self) -> None:
        """All that a process other than the first does: grades what it is given, until there is no
        more. It has nothing to save, so a signal ends it at once."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._join()
        told: list[Any] = [None]
        self._call("broadcast_object_list", told, src=0)
        if told[0] == STOP:
            return
        grader = self._grader(*told[0])
        self.gather(grader.begin())
        while (batch := self._scatter()) != STOP:
            self.gather(grader.grade(batch))

    @contextmanager
    def leading(self) -> Iterator[Self]:
        """Around all that the first process does: when it has ended well the others end too."""
        yield self
        if not self._joined:
            self._join()
            self._call("broadcast_object_list", [STOP], src=0)

    @contextmanager
    def opened(self, args: CaptureArgs, vocab_size: int, crossed: Any = None) -> Iterator[Source]:
        """The teacher in every process; `crossed`, a Crossed, for one with another tokenizer.
        Raises ConfigError where it cannot be had so, CaptureError where it cannot be loaded or a
        process ended."""
        from axolotl_distill.capture.grader import refuse_several

        refuse_several(args, "accelerate")
        if args.teacher.device_map:
            raise ConfigError(
                "`--executor accelerate` has a whole teacher on every process's device, and "
                "`teacher.device_map` spreads one over all of them. Leave the option out, or use "
                "`--executor ray`, which gives each worker a node."
            )
        self._join()
        self._call("broadcast_object_list", [(args, vocab_size, crossed)], src=0)
        grader = self._grader(args, vocab_size, crossed)
        (tokens, *_) = self.gather(grader.begin())
        yield RanksSource(self, grader, tokens, window_of(args))
        self._scatter([STOP] * self.size)

    def share_out(self, batches: list[dict[int, Row]]) -> dict[int, Row] | None:
        """Hands out one batch a process; returns that of the first."""
        return self._scatter([*batches, *[None] * (self.size - len(batches))])

    def _grader(self, args: CaptureArgs, vocab_size: int, crossed: Any) -> Any:
        import torch

        from axolotl_distill.capture.grader import Grader

        if torch.accelerator.is_available() and args.teacher.device != "cpu":
            torch.accelerator.set_device_index(self.local_rank)
            kind = torch.accelerator.current_accelerator()
            assert kind is not None
            args.teacher.device = f"{kind.type}:{self.local_rank}"
        return Grader(args, vocab_size, crossed)

    def _join(self) -> None:
        import torch.distributed as dist

        os.environ.update(self._said)
        try:
            # What is exchanged are Python objects, so it is gloo with GPUs as well.
            dist.init_process_group("gloo", timeout=PATIENCE)
        finally:
            for name in self._said:
                del os.environ[name]
        self._joined = True

    def _scatter(self, parts: list[Any] | None = None) -> Any:
        mine: list[Any] = [None]
        self._call("scatter_object_list", mine, parts, src=0)
        return mine[0]

    def gather(self, said: Any) -> list[Any]:
        """What every process said, in the first one. Raises CaptureError for text, which is what
        went wrong."""
        all_said: list[Any] | None = [None] * self.size if self.rank == 0 else None
        self._call("gather_object", said, all_said, dst=0)
        for one in all_said or ():
            if isinstance(one, str):
                raise CaptureError(one)
        return all_said or []

    def _call(self, name: str, *args: Any, **options: Any) -> None:
        import torch.distributed as dist

        try:
            getattr(dist, name)(*args, **options)
        except RuntimeError as error:
            raise CaptureError(
                f"A process of this launch ended: {error}\nWhat was captured is kept; the same "
                "command goes on, with any number of processes."
            ) from error


def refuse_launch() -> None:
    """Raises ConfigError where each of several processes would capture everything."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"This is one of {os.environ['WORLD_SIZE']} processes that accelerate or torchrun "
            "started, and each would capture the same. Add `--executor accelerate`, or start it "
            "without the launcher."
        )


class RanksSource:
    """A Source whose batches are graded by all processes of a launch."""

    def __init__(self, ranks: Ranks, grader: Any, batch_tokens: int, window_rows: int):
        self.teacher_seconds = 0.0
        self.workers = ranks.size
        self.window_rows, self._each = window_rows * ranks.size, window_rows
        self._ranks, self._grader, self._batch_tokens = ranks, grader, batch_tokens
        # Of the first process, for what it asks alone.
        self.here: Source = grader.source

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises CaptureError for what stopped a process, and for one that ended."""
        from axolotl_distill.capture.graded import batches

        plan = batches(rows, wanted, self._batch_tokens, self._each)
        found: list[tuple[int, RecordBatch]] = []
        while part := list(islice(plan, self.workers)):
            mine = self._ranks.share_out(
                [{index: rows[index] for index in batch} for batch in part]
            )
            yield from found
            answers = self._ranks.gather(self._grader.grade(mine))
            self.teacher_seconds += sum(seconds for _, seconds in answers)
            found = [one for records, _ in answers for one in records if one[0] in wanted]
        yield from found
