"""`distill.hidden_states`: which layers of the student follow which of the teacher's."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block
from axolotl_distill.config.cache import Bytes

HiddenLoss = Literal["mse", "cosine", "normalized_mse"]
ELSEWHERE = "the teacher's positions are others than the student's. Remove one of the two."
Layer = Annotated[int, Field(ge=0)]


class HiddenArgs(Block):
    """A second term of the loss of a supervised token: `weight` times the mean over the pairs of

    mse             mean over channels of (W s − t)²
    cosine          1 − cos(W s, t)
    normalized_mse  |W s − t|² / |t|²

    s and t are what a layer of the student and one of the teacher hand on at the token's position;
    W is a learnt projection, or nothing.
    """

    pairs: list[list[Layer]] | int | Literal["ratio"] = Field(
        "ratio",
        description="[[student's layer, teacher's layer], …], counted from 0; a number: so many, "
        "evenly spread, the last layers among them; ratio: every layer of the student with the "
        "teacher's at the same share of its depth.",
    )
    weight: float = Field(1.0, gt=0.0, description="Of this term beside the others.")
    loss: HiddenLoss = "cosine"
    projection: Literal["auto", "always"] = Field(
        "auto", description="auto: where the widths differ; always: one for each pair."
    )
    learning_rate: float | None = Field(
        None, gt=0.0, description="Of the projections. Default: the run's."
    )

    @field_validator("pairs")
    @classmethod
    def _of_two(cls, value: list[list[int]] | int | str) -> list[list[int]] | int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("as a number, it is at least 1")
        if isinstance(value, list):
            if not value or any(len(pair) != 2 for pair in value):
                raise ValueError("must hold pairs, as in [[5, 7], [11, 15]]")
            if len({tuple(pair) for pair in value}) != len(value):
                raise ValueError("holds a pair twice")
        return value


class CaptureHiddenArgs(Block):
    """Beside what the teacher says of the next token, what some of its layers hand on is stored."""

    layers: list[Layer] | None = Field(
        None,
        description="The teacher's, counted from 0. Default: those that `distill.hidden_states` "
        "pairs.",
    )
    dtype: Literal["float16", "int8"] = Field(
        "float16",
        description="Of each number; a token's layer has a scale of its own. int8 takes half the "
        "bytes and is off by up to 1/254 of the layer's largest number.",
    )
    limit: Bytes = Field(
        100_000_000_000,
        description="Most bytes of hidden states, as in 200GB; a capture that would store more is "
        "refused before it begins.",
    )

    @field_validator("layers")
    @classmethod
    def _each_once(cls, value: list[int] | None) -> list[int] | None:
        if value is None:
            return None
        if not value or len({*value}) != len(value):
            raise ValueError("must name one layer at least, and each once")
        return sorted(value)


def refuse_hidden(block: Any) -> None:
    """What goes with no hidden states: raises ValueError for a `distill` block that learns, or
    captures, some."""
    crosses = block.cross_tokenizer is not None
    if block.capture is not None and block.capture.hidden_states is not None and crosses:
        raise ValueError(f"`capture.hidden_states` does not go with `cross_tokenizer`: {ELSEWHERE}")
    if block.hidden_states is None:
        return
    if block.on_policy is not None:
        raise ValueError(
            "`hidden_states` with `on_policy` was not tried yet. Remove one of the two."
        )
    teacher = block.teacher
    if teacher == "text" or getattr(teacher, "server", None) is not None:
        who = "is text" if teacher == "text" else "is behind a server"
        raise ValueError(
            f"`hidden_states` needs a teacher whose layers can be read, and `teacher` {who}. Name "
            "a model there, or a store that was captured with `capture.hidden_states`, or remove "
            "the block."
        )
    if crosses:
        raise ValueError(f"`hidden_states` does not go with `cross_tokenizer`: {ELSEWHERE}")


def paired(args: HiddenArgs, student: int, teacher: int) -> list[tuple[int, int]]:
    """(layer of the student, layer of the teacher) for stacks of so many layers.

    Raises ValueError for layers that are not there.
    """
    if isinstance(args.pairs, list):
        for own, other in args.pairs:
            if own >= student or other >= teacher:
                raise ValueError(
                    f"[{own}, {other}] is not there: the student has {student} layers and the "
                    f"teacher {teacher}, both counted from 0"
                )
        return [(own, other) for own, other in args.pairs]
    count = student if args.pairs == "ratio" else args.pairs
    assert isinstance(count, int)
    if count > min(student, teacher) and args.pairs != "ratio":
        raise ValueError(f"there are no {count} pairs of {student} and {teacher} layers")
    return [(_at(n, count, student), _at(n, count, teacher)) for n in range(1, count + 1)]


def _at(n: int, count: int, layers: int) -> int:
    """The layer at the end of the n-th of `count` equal parts of a stack, n from 1; halves up."""
    return max(0, (2 * n * layers + count) // (2 * count) - 1)
