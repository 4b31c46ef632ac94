"""The filter from end to end: trajectories in, a dataset folder out."""

import json
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from axolotl_distill.config.filter import FilterArgs
from axolotl_distill.errors import FilterError, TrajectoryError
from axolotl_distill.filter.executor import Executor, StepPlan, map_rows
from axolotl_distill.filter.output.card import dataset_card
from axolotl_distill.filter.output.folder import REPORT, DatasetFolder
from axolotl_distill.filter.output.formats import formatter, keys_of, left_out
from axolotl_distill.filter.output.lengths import Lengths
from axolotl_distill.filter.output.report import (
    drop_warning,
    make_report,
    read_generation,
    top_reasons,
)
from axolotl_distill.filter.output.split import ALWAYS_FROM, evaluation, prompt_key
from axolotl_distill.filter.output.write import write_dataset
from axolotl_distill.filter.pipeline import Pipeline
from axolotl_distill.filter.rows import Trajectories
from axolotl_distill.show import foreign
from axolotl_distill.trajectories import ending
from axolotl_distill.trajectories.journal import Row

UNFIT = "cannot be read again from the dataset"


def run_filter(
    args: FilterArgs,
    source: str | Path,
    *,
    executor: Executor = map_rows,
    warn: Callable[[str], None] = lambda text: None,
    metas: Mapping[str, Row] | None = None,
) -> dict[str, Any]:
    """Filter the trajectories at `source` into the folder `args.output`; returns its report.json.

    executor  where the steps run
    warn    is told at once what should worry the user; the report has it too
    metas   the columns of the prompts as they are now, by prompt_id, for rows made with older ones

    Answers of servers are kept in `<output>.answers/`, so that a run that was killed or is
    repeated does not pay for them again. Rows that are none, or that would read otherwise in the
    dataset, are put aside with the dropped ones; TrajectoryError where all are such.

    Raises ConfigError before any row is judged. Raises FilterError for rows that the format or the
    chat template cannot hold, or without a column that a step names, when another filter writes to
    the folder, and when no row is left; then the rejected rows and the report are written all the
    same.
    """
    source, folder = Path(source), DatasetFolder(args.output)
    trajectories = Trajectories(source, read_generation(source).get("n"), metas or {})
    cache = folder.path.with_name(f"{folder.path.name}.answers")
    plans = [
        StepPlan(step.kind, step.label, step.args, args.tokenizer, cache) for step in args.steps
    ]
    for plan in plans:
        plan.check()
    lengths = Lengths(args) if args.tokenizer else None
    warnings: list[str] = []

    def worry(text: str) -> None:
        warnings.append(text)
        warn(text)

    found = _read_all(trajectories, args, lengths, worry)
    keys = found.keys
    with folder.build() as building, TemporaryDirectory() as scratch:
        pipeline = Pipeline(trajectories, len(keys), Path(scratch))
        if found.faults and (text := drop_warning(pipeline.put_aside(found.faults), args.max_drop)):
            worry(text)
        for plan in plans:
            with _progress(plan.name, int(pipeline.kept.sum())) as progress:
                count = pipeline.run(plan, executor, progress.update)
            if text := drop_warning(count, args.max_drop):
                worry(text)
            if not count.kept:
                break
        left, counts = pipeline.kept, pipeline.counts
        is_eval = np.zeros(len(keys), bool)
        is_eval[left] = evaluation(keys[left], args.split.eval)
        with _progress("write", len(keys)) as progress:
            written = write_dataset(
                pipeline, args, building, is_eval, found.used, lengths, progress.update
            )
        sides = {"train": left & ~is_eval, "eval": left & is_eval}
        prompts = {name: int(np.unique(keys[side]).size) for name, side in sides.items()}
        for text in _doubts(args, written, prompts):
            worry(text)
        report = make_report(args, source, counts, prompts, written, warnings)
        (building / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        if left.any():
            (building / "README.md").write_text(dataset_card(report, args))
    if not left.any():
        last = counts[-1]
        raise FilterError(
            f"No row is left: `{last.name}` dropped the last {last.dropped} ({top_reasons(last)}). "
            f"See {folder.path / 'rejected'} and {folder.path / REPORT}."
        )
    return report


@dataclass
class _Found:
    """What reading all rows once found.

    keys    uint64 [rows]: prompt_key of every row, 0 of those that are put aside
    used    keys of messages, and "tools", that the dataset needs columns for
    faults  (reason, detail) of rows to put aside, by place
    """

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    used: set[str] = field(default_factory=set)
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)


def _read_all(
    source: Trajectories,
    args: FilterArgs,
    lengths: Lengths | None,
    worry: Callable[[str], None],
) -> _Found:
    make, keys, found = formatter(args), array("Q"), _Found()
    columns = [named for step in args.steps for named in step.columns]
    dropped: set[str] = set()
    unknown_ends: set[str] = set()
    of_prompt: dict[str, int] = {}
    counts: Counter[str] = Counter()
    first: TrajectoryError | None = None
    with _progress("read", None) as progress:
        for place, row in enumerate(source.rows()):
            keys.append(0)
            progress.update()
            try:
                if row["fault"]:
                    raise TrajectoryError(row["fault"][1])
                made = make(row)
                if lengths is not None:
                    lengths.check(row)
            except TrajectoryError as error:
                first = first or error
                found.faults[place] = row["fault"] or (UNFIT, str(error))
                continue
            _check_columns(row, columns)
            found.used |= keys_of(made)
            dropped |= left_out(row)
            counts["refusal"] += bool((row["message"] or {}).get("refusal"))
            counts["closing tag"] += row["thinking_form"] == "closing tag"
            if row["finish_reason"] is not None and ending(row["finish_reason"]) == "unknown":
                unknown_ends.add(str(row["finish_reason"]))
            key = prompt_key(row, args.split.seed)
            if of_prompt.setdefault(row["prompt_id"], key) != key:
                raise TrajectoryError(
                    f"{source.path}: prompt_id {row['prompt_id']} stands for two different prompts;"
                    f" one is that of row {row['id']}. Give every prompt an id of its own."
                )
            keys[-1] = key
    if not keys:
        raise TrajectoryError(
            f"{source.path} holds no rows yet. Run `axolotl distill generate` first."
        )
    if first is not None and len(found.faults) == len(keys):
        raise TrajectoryError(f"{source.path}: none of its {len(keys)} rows can be used. {first}")
    if unknown_ends:
        worry(
            "No table has these words for how an answer ended, and their rows count as finished: "
            f"{foreign(', '.join(sorted(unknown_ends)))}."
        )
    for text in _notes(dropped, counts, source.unknown(of_prompt), len(of_prompt)):
        worry(text)
    found.keys = np.asarray(keys, np.uint64)
    return found


def _notes(
    dropped: set[str], counts: Mapping[str, int], unknown: int, prompts: int
) -> Iterator[str]:
    if dropped:
        yield (
            f"Messages also have {', '.join(sorted(dropped))}, for which the dataset has no place. "
            "Check that the conversations make sense without."
        )
    if counts["refusal"]:
        yield (
            f"{counts['refusal']} rows are refusals: what the teacher says in `refusal` is their "
            "answer. A `format` step takes them out."
        )
    if counts["closing tag"]:
        yield (
            f"{counts['closing tag']} rows close a thinking that they do not open, as if the chat "
            "template had opened it; they are split there. See `generate.thinking_opened`."
        )
    if unknown:
        yield (
            f"{unknown} of {prompts} prompts are not among `generate.prompts` now; their rows are "
            "used as they were made. Use another folder to keep them apart."
        )


def _check_columns(row: Row, columns: list[tuple[str, str]]) -> None:
    for key, column in columns:
        if column not in row["meta"]:
            raise FilterError(
                f"`{key}` names the column {column!r} of the prompts, and row {row['id']} has "
                f"{', '.join(sorted(row['meta'])) or 'no columns'}. Correct the name; a prompt "
                "that has no value needs the column with null."
            )


def _doubts(args: FilterArgs, written: dict[str, Any], prompts: dict[str, int]) -> list[str]:
    doubts = []
    if args.split.eval and not prompts["eval"] and prompts["train"]:
        doubts.append(
            f"There is no evaluation split: {prompts['train']} prompts are left, and none of them "
            f"falls into the {args.split.eval:.0%} set aside. From {ALWAYS_FROM} prompts on there "
            "is one."
        )
    tokens = written.get("tokens") or {}
    if tokens.get("past"):
        doubts.append(
            f"{tokens['past']:.1%} of the rows are longer than sequence_len {args.sequence_len}; "
            "Axolotl drops or cuts them. Raise it, or add a `length` step."
        )
    if tokens.get("thinking_lost"):
        doubts.append(
            f"The chat template of {Path(args.tokenizer).name} leaves the thinking of "
            f"{tokens['thinking_lost']} rows out, so a student would not learn it. Train with a "
            "template that keeps it."
        )
    return doubts


def _progress(name: str, total: int | None) -> tqdm:
    return tqdm(
        total=total,
        unit="row",
        desc=name,
        mininterval=1.0 if sys.stderr.isatty() else 10.0,
    )
