"""Reads all rows once, before any is judged: which can be used, and what the dataset will need."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from axolotl_distill.errors import FilterError, TrajectoryError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.conversation import left_out
from axolotl_distill.filter.output.formats import formatter, keys_of
from axolotl_distill.filter.output.lengths import Lengths
from axolotl_distill.filter.output.split import prompt_key
from axolotl_distill.filter.rows import Trajectories
from axolotl_distill.filter.step import Candidate
from axolotl_distill.show import foreign
from axolotl_distill.trajectories import ending

UNFIT = "cannot be read again from the dataset"


class Survey:
    """What reading all rows of `source` once found.

    keys    uint64 [rows]: prompt_key of every row, 0 of those that are put aside
    used    keys of messages, and "tools", that the dataset needs columns for
    faults  (reason, detail) of rows to put aside, by place
    notes   what should worry the user

    lengths  checks that the tokenizer's template takes the rows; None where none are counted
    seen     is called after every row

    Raises TrajectoryError where there are no rows, or none that can be used, and FilterError for
    rows that the format or the chat template cannot hold, or without a column that a step names.
    """

    def __init__(
        self,
        source: Trajectories,
        args: FilterArgs,
        lengths: Lengths | None = None,
        seen: Callable[[], Any] = lambda: None,
    ):
        self.used: set[str] = set()
        self.faults: dict[int, tuple[str, str]] = {}
        self._source, self._args, self._lengths = source, args, lengths
        self._make = formatter(args)
        self._columns = [named for step in args.steps for named in step.columns]
        self._dropped: set[str] = set()
        self._unknown_ends: set[str] = set()
        self._of_prompt: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        keys, first = array("Q"), ""
        for place, row in enumerate(source.rows()):
            seen()
            try:
                keys.append(self._key(row))
            except TrajectoryError as error:
                keys.append(0)
                first = first or str(error)
                self.faults[place] = row["fault"] or (UNFIT, str(error))
        if not keys:
            raise TrajectoryError(
                f"{source.path} holds no rows yet. Run `axolotl distill generate` first."
            )
        if len(self.faults) == len(keys):
            raise TrajectoryError(
                f"{source.path}: none of its {len(keys)} rows can be used. {first}"
            )
        self.keys = np.asarray(keys, np.uint64)
        self.notes = list(self._notes())

    def _key(self, row: Candidate) -> int:
        """The row's prompt_key. Raises TrajectoryError for a row that is to be put aside."""
        if row["fault"]:
            raise TrajectoryError(row["fault"][1])
        made = self._make(row)
        if self._lengths is not None:
            self._lengths.check(row)
        self._check_columns(row)
        self.used |= keys_of(made)
        self._dropped |= left_out(row)
        self._counts["refusal"] += bool((row["message"] or {}).get("refusal"))
        self._counts["closing tag"] += row["thinking_form"] == "closing tag"
        if row["finish_reason"] is not None and ending(row["finish_reason"]) == "unknown":
            self._unknown_ends.add(str(row["finish_reason"]))
        key = prompt_key(row, self._args.split.seed)
        if self._of_prompt.setdefault(row["prompt_id"], key) != key:
            raise FilterError(
                f"{self._source.path}: prompt_id {row['prompt_id']} stands for two different "
                f"prompts; one is that of row {row['id']}. Give every prompt an id of its own."
            )
        return key

    def _check_columns(self, row: Candidate) -> None:
        for key, column in self._columns:
            if column not in row["meta"]:
                raise FilterError(
                    f"`{key}` names the column {column!r} of the prompts, and row {row['id']} has "
                    f"{', '.join(sorted(row['meta'])) or 'no columns'}. Correct the name; a prompt "
                    "that has no value needs the column with null."
                )

    def _notes(self) -> Iterator[str]:
        counts = self._counts
        if self._unknown_ends:
            yield (
                "No table has these words for how an answer ended, and their rows count as "
                f"finished: {foreign(', '.join(sorted(self._unknown_ends)))}."
            )
        if self._dropped:
            yield (
                f"Messages also have {', '.join(sorted(self._dropped))}, for which the dataset has "
                "no place. Check that the conversations make sense without."
            )
        if counts["refusal"]:
            yield (
                f"{counts['refusal']} rows are refusals: what the teacher says in `refusal` is "
                "their answer. A `format` step takes them out."
            )
        if counts["closing tag"]:
            yield (
                f"{counts['closing tag']} rows close a thinking that they do not open, as if the "
                "chat template had opened it; they are split there. See "
                "`generate.thinking_opened`."
            )
        if unknown := self._source.unknown(self._of_prompt):
            yield (
                f"{unknown} of {len(self._of_prompt)} prompts are not among `generate.prompts` "
                "now; their rows are used as they were made. Use another folder to keep them apart."
            )
