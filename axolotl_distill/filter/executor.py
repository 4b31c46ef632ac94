"""Where the steps run. A step's plan is small and can be pickled; a step may hold models."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from axolotl_distill.config.block import Block
from axolotl_distill.filter import steps  # noqa: F401 (fills STEPS, in a worker too)
from axolotl_distill.filter.step import STEPS, Around, Candidate, Step, Verdict, Where


@dataclass(frozen=True)
class StepPlan:
    """All that is needed to build a step, in this process or in another one."""

    kind: str
    args: Block
    around: Around

    @property
    def name(self) -> str:
        return self.around.name

    @property
    def where(self) -> Where:
        return STEPS[self.kind].where(self.args)

    def build(self) -> Step:
        """Raises ConfigError for a package, tokenizer, model or language that is not there."""
        return STEPS[self.kind](self.args, self.around)

    def check(self) -> None:
        """As `build`, for its errors alone."""
        self.build().close()


Executor = Callable[[StepPlan, Iterable[Candidate]], Iterator[Verdict]]
"""Judges rows by a plan: one verdict a row, in order."""


def map_rows(plan: StepPlan, rows: Iterable[Candidate]) -> Iterator[Verdict]:
    """The local executor: in this process, one row after the other."""
    with closing(plan.build()) as step:
        yield from step.judge(rows)
