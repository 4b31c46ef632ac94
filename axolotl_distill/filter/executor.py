"""Where the steps run. A step's plan is small and can be pickled; a step may hold models."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from axolotl_distill.config.block import Block
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.step import Step, Verdict
from axolotl_distill.trajectories.journal import Row


@dataclass(frozen=True)
class StepPlan:
    """All that is needed to build a step, in this process or in another one.

    `cache` is the folder for answers that were paid for; `tokenizer` the recipe's.
    """

    kind: str
    name: str
    args: Block
    tokenizer: str | None
    cache: Path

    def build(self) -> Step:
        """Checks what can be checked at once; models are loaded when the first row comes.

        Raises ConfigError for a package, tokenizer, model or language that is not there.
        """
        from axolotl_distill.filter.steps import (
            checks,
            choose,
            deduplicate,
            judge,
            language,
            reward,
        )

        match self.kind:
            case "verify":
                from axolotl_distill.filter.verify import VerifyStep

                return VerifyStep(self.args)
            case "format":
                return checks.FormatStep(self.args)
            case "thinking":
                return checks.ThinkingStep(self.args, self.tokenizer)
            case "length":
                return checks.LengthStep(self.args, self.tokenizer)
            case "language":
                require("py3langid", f"filter.steps: {self.name}")
                return language.LanguageStep(self.args)
            case "deduplicate":
                if self.args.method == "near":
                    require("datasketch", f"filter.steps: {self.name}")
                return deduplicate.deduplicate(self.args)
            case "judge":
                return judge.JudgeStep(self.args, self.cache / f"{self.name}.jsonl")
            case "reward":
                if self.args.server is not None:
                    return reward.ServerRewardStep(self.args, self.cache / f"{self.name}.jsonl")
                return reward.ModelRewardStep(self.args)
            case "best_of_n":
                return choose.BestOfNStep(self.args)
            case "top":
                return choose.TopStep(self.args)
        raise ValueError(f"no step of kind {self.kind!r}")

    def check(self) -> None:
        """As `build`, for its errors alone."""
        _close(self.build())

    def is_row_wise(self) -> bool:
        """Whether a row's verdict depends on that row alone; then it may be judged anywhere."""
        step = self.build()
        _close(step)
        return step.row_wise


Executor = Callable[[StepPlan, Iterable[Row]], Iterator[Verdict]]
"""Judges rows by a plan: one verdict a row, in order. Steps that are not row-wise see all rows."""


def map_rows(plan: StepPlan, rows: Iterable[Row]) -> Iterator[Verdict]:
    """The local executor: in this process, one row after the other."""
    step = plan.build()
    try:
        yield from step.judge(rows)
    finally:
        _close(step)


def _close(step: Step) -> None:
    close = getattr(step, "close", None)
    if close is not None:
        close()
