"""`distill.hidden_states`: which layers of the student follow which of the teacher's."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block

HiddenLoss = Literal["mse", "cosine", "normalized_mse"]
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
