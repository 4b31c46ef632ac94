"""The filter from end to end: trajectories in, a dataset folder out."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from axolotl_distill.errors import FilterError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.executor import Executor, StepPlan, map_rows
from axolotl_distill.filter.output.card import dataset_card
from axolotl_distill.filter.output.folder import REPORT, DatasetFolder
from axolotl_distill.filter.output.lengths import Lengths
from axolotl_distill.filter.output.report import (
    Report,
    drop_warning,
    make_report,
    read_generation,
    top_reasons,
)
from axolotl_distill.filter.output.split import ALWAYS_FROM, evaluation
from axolotl_distill.filter.output.write import Written, write_dataset
from axolotl_distill.filter.pipeline import Pipeline
from axolotl_distill.filter.rows import Trajectories
from axolotl_distill.filter.step import Around
from axolotl_distill.filter.survey import Survey
from axolotl_distill.trajectories.row import Row


class Filter:
    """Filters the trajectories at `source` into the folder `args.output`. It is run once.

    executor  where the steps run
    warn      is told at once what should worry the user; the report has it too
    metas     the columns of the prompts as they are now, by prompt_id, for rows made with older
              ones

    Raises ConfigError before any row is read.
    """

    def __init__(
        self,
        args: FilterArgs,
        source: str | Path,
        *,
        executor: Executor = map_rows,
        warn: Callable[[str], None] = lambda text: None,
        metas: Mapping[str, Row] | None = None,
    ):
        self.args, self.executor, self.warn = args, executor, warn
        self.folder = DatasetFolder(args.output)
        self.generation = read_generation(Path(source))
        self.source = Trajectories(Path(source), self.generation.get("n"), metas or {})
        answers = self.folder.path.with_name(f"{self.folder.path.name}.answers")
        self.plans = [
            StepPlan(step.kind, step.args, Around(step.label, args.tokenizer, answers))
            for step in args.steps
        ]
        for plan in self.plans:
            plan.check()
        self.lengths = Lengths(args) if args.tokenizer else None
        self.warnings: list[str] = []

    def run(self) -> Report:
        """Returns the dataset's report.json.

        Answers of servers are kept in `<output>.answers/`, so that a run that was killed or is
        repeated does not pay for them again. Rows that are none, or that would read otherwise in
        the dataset, are put aside with the dropped ones.

        Raises what `Survey` raises; and FilterError when another filter writes to the folder, and
        when no row is left: then the rejected rows and the report are written all the same.
        """
        with _bar("read", None) as bar:
            survey = Survey(self.source, self.args, self.lengths, bar.update)
        self._worry(*survey.notes)
        with self.folder.build() as building, TemporaryDirectory() as scratch:
            pipeline = Pipeline(self.source, len(survey.keys), Path(scratch))
            self._judge(pipeline, survey)
            report = self._write(pipeline, survey, building)
        if not pipeline.kept.any():
            last = pipeline.counts[-1]
            raise FilterError(
                f"No row is left: `{last.name}` dropped the last {last.dropped} "
                f"({top_reasons(last)}). See {self.folder.path / 'rejected'} and "
                f"{self.folder.path / REPORT}."
            )
        return report

    def _judge(self, pipeline: Pipeline, survey: Survey) -> None:
        if survey.faults:
            self._worry(drop_warning(pipeline.put_aside(survey.faults), self.args.max_drop))
        for plan in self.plans:
            with _bar(plan.name, int(pipeline.kept.sum())) as bar:
                count = pipeline.run(plan, self.executor, bar.update)
            self._worry(drop_warning(count, self.args.max_drop))
            if not count.kept:
                return

    def _write(self, pipeline: Pipeline, survey: Survey, building: Path) -> Report:
        left, keys = pipeline.kept, survey.keys
        is_eval = np.zeros(len(keys), bool)
        is_eval[left] = evaluation(keys[left], self.args.split.eval)
        with _bar("write", len(keys)) as bar:
            written = write_dataset(
                pipeline, self.args, building, is_eval, survey.used, self.lengths, bar.update
            )
        sides = {"train": left & ~is_eval, "eval": left & is_eval}
        prompts = {name: int(np.unique(keys[side]).size) for name, side in sides.items()}
        self._worry(*self._doubts(written, prompts))
        report = make_report(
            self.args,
            self.source.path,
            self.generation,
            pipeline.counts,
            prompts,
            written,
            self.warnings,
        )
        (building / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        if left.any():
            (building / "README.md").write_text(str(dataset_card(report, self.args)))
        return report

    def _worry(self, *texts: str | None) -> None:
        for text in filter(None, texts):
            self.warnings.append(text)
            self.warn(text)

    def _doubts(self, written: Written, prompts: dict[str, int]) -> Iterator[str]:
        args, tokens = self.args, written["tokens"] or {}
        if args.split.eval and not prompts["eval"] and prompts["train"]:
            yield (
                f"There is no evaluation split: {prompts['train']} prompts are left, and none of "
                f"them falls into the {args.split.eval:.0%} set aside. From {ALWAYS_FROM} prompts "
                "on there is one."
            )
        if tokens.get("past"):
            yield (
                f"{tokens['past']:.1%} of the rows are longer than sequence_len "
                f"{args.sequence_len}; Axolotl drops or cuts them. Raise it, or add a `length` "
                "step."
            )
        if tokens.get("thinking_lost"):
            yield (
                f"The chat template of {Path(args.tokenizer or '').name} leaves the thinking of "
                f"{tokens['thinking_lost']} rows out, so a student would not learn it. Train with "
                "a template that keeps it."
            )


def _bar(name: str, total: int | None) -> tqdm:
    return tqdm(
        total=total,
        unit="row",
        desc=name,
        mininterval=1.0 if sys.stderr.isatty() else 10.0,
    )
