"""What a row tells the teachers that answer while the student trains: which of them it learns from.

Axolotl drops the columns of a dataset that make no text, so the dataset's own type is wrapped: it
makes the row, and what the raw row has for the teacher is put beside every token of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from axolotl.datasets import wrap_dataset_for_tokenized_prompt
from axolotl.prompt_tokenizers import DatasetWrappingStrategy, PromptTokenizingStrategy
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from datasets import Dataset

from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.types import CARRIER, READ_AS, READ_BY
from axolotl_distill.show import foreign
from axolotl_distill.signal.batch import CHOICES

MODULE = __name__
# Keys of an entry of `datasets` while it is read: the type that it had, and what its rows tell.
TYPE, TOLD = READ_AS, "axolotl_distill_told"


@dataclass(frozen=True)
class Told:
    """column: of the raw row, which holds one of `names`; its place among them is what the batch
    has."""

    column: str
    names: tuple[str, ...]

    def number(self, value: Any) -> int | None:
        """Of a row's value: text as it is, whole numbers and booleans as YAML writes them."""
        if isinstance(value, bool):
            value = str(value).lower()
        text = str(value) if isinstance(value, int) else value
        return self.names.index(text) if text in self.names else None


def tell(entries: Sequence[Any], told: Told) -> None:
    """Gives every dataset the type of this module, in place; what was prepared for other choices,
    or by another type, is not taken for it."""
    for entry in entries:
        key = f"{told.column}={'|'.join(told.names)}/{entry.get('type')}"
        entry[CARRIER] = f"{entry.get(CARRIER) or ''}{READ_BY}{key}"
        entry[TYPE], entry["type"] = entry["type"], MODULE
        entry[TOLD] = asdict(told)


class ToldRows(PromptTokenizingStrategy):
    """A strategy whose rows have CHOICES too."""

    def __init__(self, own: Any, told: Told):
        super().__init__(prompter=own.prompter, tokenizer=own.tokenizer)
        self.own, self.told = own, told
        self.filter_rows = own.filter_rows

    @property
    def supports_batched(self) -> bool:
        return bool(self.own.supports_batched)

    def tokenize_prompt(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """One raw row; of a strategy that takes many of them, many, of each of which it may make
        any number."""
        if not self.supports_batched:
            made = dict(self.own.tokenize_prompt(prompt))
            return made | {CHOICES.name: self._beside(prompt, made["input_ids"])}
        rows: dict[str, list[Any]] = {CHOICES.name: []}
        for raw in _one_by_one(prompt):
            made = self.own.tokenize_prompt({name: [value] for name, value in raw.items()})
            for name, values in made.items():
                rows.setdefault(name, []).extend(values)
            rows[CHOICES.name] += [self._beside(raw, ids) for ids in made["input_ids"]]
        return rows

    def _beside(self, raw: dict[str, Any], ids: Sequence[int]) -> list[int]:
        number = self.told.number(raw[self.told.column])
        assert number is not None, "all rows were looked at before"
        return [number] * len(ids)


def _one_by_one(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
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
        """Raises ConfigError for a dataset without the column, for a row that names no choice, and
        for a type whose rows are made in a way of its own."""
        self._check(dataset)
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
                "which rows cannot name their teacher (`distill.teacher.column`). Use `type: "
                "chat_template`."
            )
        return own

    def _check(self, dataset: Any) -> None:
        column, names, path = self.told.column, self.told.names, self.entry.path
        if column not in dataset.column_names:
            raise ConfigError(
                f"{path} has no column `{column}`, which `distill.teacher.column` says names each "
                f"row's teacher. Its columns are {', '.join(map(foreign, dataset.column_names))}. "
                "Add it to the rows, or correct `column`."
            )
        wrong = [
            (number, value)
            for number, value in enumerate(dataset[column], 1)
            if self.told.number(value) is None
        ]
        if not wrong:
            return
        (number, value), of = wrong[0], len(dataset)
        near = get_close_matches(str(value).strip().lower(), names, n=1)
        shown = "is missing" if value is None else f"is {foreign(repr(value), 80)}"
        hint = f"did you mean {near[0]!r}? " if near and value is not None else ""
        raise ConfigError(
            f"{path}, row {number}: `{column}` {shown}, and none of `distill.teacher.choices` is "
            f"called so; {hint}They are {', '.join(map(repr, names))}. That is so of {len(wrong)} "
            f"of its {of} rows. Correct or remove them, or name their teacher among the choices."
        )


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> ToldStrategy:
    """Axolotl's entry point for a dataset type."""
    entry = DictDefault({k: v for k, v in ds_cfg.items() if k not in (TYPE, TOLD)})
    entry["type"] = ds_cfg[TYPE]
    about = ds_cfg[TOLD]
    return ToldStrategy(tokenizer, cfg, entry, Told(about["column"], tuple(about["names"])))
