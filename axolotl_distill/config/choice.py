"""Several teachers, of whom a column of the row names the one that it learns from."""

from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from axolotl_distill.config.block import Block
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.config.teacher import TeacherArgs

KEYS = ("column", "choices")
MEANT = {
    **dict.fromkeys(("by", "field", "key", "teacher_key"), "column"),
    **dict.fromkeys(("models", "teachers"), "choices"),
}
# What there would have to be of each teacher, and why it is not.
NOT_YET = {
    "hidden_states": "its layers are paired with those of one teacher",
    "cross_tokenizer": "rows are written for one teacher that has another tokenizer",
}
NOT_YET_ON_POLICY = {
    "seq_kd": "one teacher writes for all prompts",
    "keep": "a store has the records of one teacher",
}


def chooses(value: Any) -> bool:
    """Whether a teacher's block, as it is written or read, is meant to be one of several."""
    return isinstance(value, ChoiceArgs) or (
        isinstance(value, dict) and not value.keys().isdisjoint({*KEYS, *MEANT})
    )


class ChoiceArgs(Block):
    """{column: domain, choices: {math: TEACHER, code: TEACHER}}: a row whose `domain` is math
    learns from the teacher named so. A TEACHER is what `teacher` itself takes: a name, a block, or
    self."""

    MEANT: ClassVar[dict[str, str]] = MEANT

    column: str = Field(
        min_length=1, description="Of the rows of `datasets` and `test_datasets`: a choice's name."
    )
    choices: dict[str, TeacherArgs] = Field(
        description="By what the column holds, two teachers or more; all of them are loaded."
    )

    @field_validator("choices", mode="before")
    @classmethod
    def _are_teachers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # YAML takes `1:` for a number.
        value = {str(name): teacher for name, teacher in value.items()}
        for name, teacher in value.items():
            if not name.strip() or not name.isprintable():
                raise ValueError(
                    f"{name!r} is no name of a choice, which is written as a row's column has it"
                )
            if teacher in ("store", "text"):
                raise ValueError(
                    f"`{name}: {teacher}` is no teacher that answers while the student trains. "
                    "Name a model, its block, or self; leave such rows out of these `datasets`."
                )
            if chooses(teacher):
                raise ValueError(
                    f"`{name}` chooses again. A choice is one teacher: name all of them here, and "
                    "give the rows one column that tells them apart."
                )
        if len(value) < 2:
            found = f"`{next(iter(value))}` is the only one" if value else "there is none"
            raise ValueError(
                f"{found}, and a row's column has nothing to choose. Name two teachers or more, or "
                "write the one as `teacher` itself."
            )
        return value

    @model_validator(mode="after")
    def _has_one_average(self) -> "ChoiceArgs":
        averaged = [name for name, teacher in self.choices.items() if teacher.ema is not None]
        if len(averaged) > 1:
            raise ValueError(
                f"`ema` of {' and '.join(f'`choices.{name}`' for name in averaged)}: a checkpoint "
                "keeps one average of the student's weights. Leave it in one of them."
            )
        return self

    @property
    def server(self) -> ServerArgs | None:
        """Of the first choice behind one, if there is any."""
        return next((t.server for t in self.choices.values() if t.server is not None), None)

    @property
    def names(self) -> tuple[str, ...]:
        """By a choice's number."""
        return tuple(self.choices)


def refuse_with_choices(block: Any) -> None:
    """What goes with one teacher only: raises ValueError for a `distill` block with several."""
    for key, why in NOT_YET.items():
        if getattr(block, key) is not None:
            raise ValueError(f"`{key}` does not go with `teacher.choices`: {why}. Remove it.")
    for key, why in NOT_YET_ON_POLICY.items():
        if block.on_policy is not None and getattr(block.on_policy, key):
            raise ValueError(
                f"`on_policy.{key}` does not go with `teacher.choices` yet: {why}. Remove it."
            )
