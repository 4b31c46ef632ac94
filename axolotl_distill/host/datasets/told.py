"""What a row tells the teachers that answer while the student trains: which of several it learns
from, and what only that one reads of it.

Axolotl drops the columns of a dataset that make no text, so the dataset's own type is wrapped: it
makes the row, and what the raw row has for the teacher is put beside it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import pyarrow as pa
from axolotl.datasets import wrap_dataset_for_tokenized_prompt
from axolotl.prompt_tokenizers import DatasetWrappingStrategy, PromptTokenizingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_distill.config.teacher import context_of
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.types import CARRIER, READ_AS, READ_BY
from axolotl_distill.show import foreign
from axolotl_distill.signal.batch import CHOICES, CONTEXTS

MODULE = __name__
# Keys of an entry of `datasets` while it is read: the type that it had, and what its rows tell.
TYPE, TOLD = READ_AS, "axolotl_distill_told"
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """column    of the raw row, which holds one of `names`, whose place among them is what the
                 batch has; None where there is one teacher
    contexts     of each teacher: the column whose text only it reads of a row, and its `context`,
                 in which the text is put; None for one that reads no more than the student
    """

    column: str | None
    names: tuple[str, ...]
    contexts: tuple[tuple[str, str | None] | None, ...]

    def number(self, row: Row) -> int | None:
        """Of a row's teacher. The column has text as it is, whole numbers and booleans as YAML
        writes them."""
        if self.column is None:
            return 0
        value = row[self.column]
        if isinstance(value, bool):
            value = str(value).lower()
        text = str(value) if isinstance(value, int) else value
        return self.names.index(text) if text in self.names else None

    def shown(self, row: Row) -> str:
        """What only its teacher reads of a row; empty where that is nothing."""
        number = self.number(row)
        assert number is not None, "all rows were looked at before"
        context = self.contexts[number]
        if context is None:
            return ""
        return context_of(*context, row[context[0]])


def tell(entries: Sequence[Any], told: Told) -> None:
    """Gives every dataset the type of this module, in place; what was prepared for other teachers,
    or by another type, is not taken for it."""
    for entry in entries:
        written = json.dumps(asdict(told))
        key = f"{written}/{entry.get('type')}"
        entry[CARRIER] = f"{entry.get(CARRIER) or ''}{READ_BY}{key}"
        entry[TYPE], entry["type"] = entry["type"], MODULE
        entry[TOLD] = written


def _read(written: str) -> Told:
    about = json.loads(written)
    contexts = (tuple(context) if context else None for context in about["contexts"])
    return Told(about["column"], tuple(about["names"]), tuple(contexts))


class ToldRows(PromptTokenizingStrategy):
    """A strategy whose rows have CHOICES and CONTEXTS too, as far as there are any."""

    def __init__(self, own: Any, told: Told):
        super().__init__(prompter=own.prompter, tokenizer=own.tokenizer)
        self.own, self.told = own, told
        self.filter_rows = own.filter_rows

    @property
    def supports_batched(self) -> bool:
        return bool(self.own.supports_batched)

    def tokenize_prompt(self, prompt: Row) -> Row:
        """One raw row; of a strategy that takes many of them, many, of each of which it may make
        any number."""
        if not self.supports_batched:
            made = dict(self.own.tokenize_prompt(prompt))
            return made | self._beside(prompt, [made["input_ids"]], each=False)
        rows: dict[str, list[Any]] = {}
        for raw in _one_by_one(prompt):
            made = dict(self.own.tokenize_prompt({name: [value] for name, value in raw.items()}))
            for name, values in (made | self._beside(raw, made["input_ids"])).items():
                rows.setdefault(name, []).extend(values)
        return rows

    def _beside(self, raw: Row, texts: Sequence[Sequence[int]], each: bool = True) -> Row:
        """The columns of what one raw row became."""
        found: dict[str, list[Any]] = {}
        if self.told.column is not None:
            found[CHOICES.name] = [[self.told.number(raw)] * len(ids) for ids in texts]
        if any(self.told.contexts):
            ids = self.tokenizer(self.told.shown(raw), add_special_tokens=False)["input_ids"]
            found[CONTEXTS.name] = [list(ids)] * len(texts)
        return found if each else {name: values[0] for name, values in found.items()}


def _one_by_one(batch: dict[str, list[Any]]) -> Iterator[Row]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


class ToldStrategy(DatasetWrappingStrategy):
    """Looks at all rows of a dataset before one is tokenised, and has Axolotl tokenise them."""

    def __init__(self, tokenizer: Any, cfg: Any, entry: DictDefault, told: Told):
        self.tokenizer, self.cfg, self.entry, self.told = tokenizer, cfg, entry, told

    def wrap_dataset(
        self,
        dataset: Any,
        process_count: int | None = None,
        keep_in_memory: bool | None = False,
        **kwargs: Any,
    ) -> Dataset:
        """Raises ConfigError for a dataset without a column, for a row that names no choice or has
        nothing for its teacher to read, and for a type whose rows are made in a way of its own."""
        self._check_names(dataset)
        self._check_contexts(dataset)
        rows = ToldRows(self._own(dataset), self.told)
        return wrap_dataset_for_tokenized_prompt(
            rows, dataset, process_count=process_count, keep_in_memory=keep_in_memory, **kwargs
        )

    def _own(self, dataset: Dataset) -> Any:
        """The strategy of the dataset's own type, however Axolotl comes by it: that which it would
        read no row with."""
        kind = self.entry.type
        base, _, style = kind.partition(":") if isinstance(kind, str) else (None, "", "")
        nothing = Dataset.from_dict({name: [] for name in dataset.column_names})
        wrapped, _ = get_dataset_wrapper(
            self.entry, self.tokenizer, self.cfg, base, nothing, style or None
        )
        own = getattr(wrapped, "prompt_tokenizer", None)
        if own is None:
            raise ConfigError(
                f"`type: {kind}` of {self.entry.path} is read by Axolotl in a way of its own, in "
                "which rows can tell their teacher nothing. Use `type: chat_template`."
            )
        return own

    def _check_names(self, dataset: Any) -> None:
        column, names = self.told.column, self.told.names
        if column is None:
            return
        self._check_column(dataset, column, "names each row's teacher", "column")
        wrong = [
            (at, value)
            for at, value in enumerate(dataset[column], 1)
            if self.told.number({column: value}) is None
        ]
        if not wrong:
            return
        value = wrong[0][1]
        near = get_close_matches(str(value).strip().lower(), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near and value is not None else ""
        self._refuse(
            dataset, column, wrong,
            f"and none of `distill.teacher.choices` is called so; {hint}They are "
            f"{', '.join(map(repr, names))}.",
            "Correct or remove them, or name their teacher among the choices.",
        )  # fmt: skip

    def _check_contexts(self, dataset: Any) -> None:
        for teacher, context in enumerate(self.told.contexts):
            if context is None:
                continue
            column = context[0]
            self._check_column(
                dataset, column, "holds what only its teacher sees of a row", "context_column"
            )
            wrong = [
                (at, value)
                for at, (value, own) in enumerate(
                    zip(dataset[column], self._teachers(dataset), strict=True), 1
                )
                if own == teacher and not (isinstance(value, str) and value.strip())
            ]
            if wrong:
                self._refuse(
                    dataset, column, wrong,
                    "and text is expected, which only its teacher sees "
                    "(`distill.teacher.context_column`).",
                    "Write it down, or remove such rows.",
                )  # fmt: skip

    def _teachers(self, dataset: Any) -> list[int | None]:
        """By number, of every row."""
        column = self.told.column
        values = [None] * len(dataset) if column is None else dataset[column]
        return [self.told.number({column or "": value}) for value in values]

    def _check_column(self, dataset: Any, column: str, what: str, key: str) -> None:
        if column not in dataset.column_names:
            raise ConfigError(
                f"{self.entry.path} has no column `{column}`, which `distill.teacher` says {what} "
                f"(`{key}`). Its columns are {', '.join(map(foreign, dataset.column_names))}. "
                f"Add it to the rows, or correct `{key}`."
            )

    def _refuse(
        self, dataset: Any, column: str, wrong: list[tuple[int, Any]], why: str, remedy: str
    ) -> None:
        number, value = wrong[0]
        shown = "is missing" if value is None else f"is {foreign(repr(value), 80)}"
        raise ConfigError(
            f"{self.entry.path}, row {number}: `{column}` {shown}, {why} That is so of "
            f"{len(wrong)} of its {len(dataset)} rows. {remedy}"
        )


def chosen_of(table: pa.Table) -> np.ndarray:
    """int64 [rows]: the number of each row's teacher, -1 of a row without tokens."""
    column = table[CHOICES.name].combine_chunks()
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    found = CHOICES.filled(len(column))
    some = np.diff(offsets) > 0
    found[some] = values[offsets[:-1][some]]
    return found


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> ToldStrategy:
    """Axolotl's entry point for a dataset type."""
    entry = DictDefault({k: v for k, v in ds_cfg.items() if k not in (TYPE, TOLD)})
    entry["type"] = ds_cfg[TYPE]
    return ToldStrategy(tokenizer, cfg, entry, _read(ds_cfg[TOLD]))
