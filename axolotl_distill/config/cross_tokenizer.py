"""`distill.cross_tokenizer`: a teacher that has another tokenizer than the student."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block, ReadBy

# What others call it, and why it is not here.
NOT_HERE = {
    "uld": "it compares sorted probabilities, whatever their tokens are, and needs the teacher "
    "beside the training",
    "gold": "its default merge takes another conditional than the text has",
    "alm": "its binarised likelihoods of spans are the records that `span` makes of tokens that "
    "the teacher splits",
}

LEAST_SAMPLES = 20


class CrossTokenizerArgs(Block):
    """How a teacher's distributions over its tokens become the student's."""

    method: Literal["span", "common_tokens", "min_ed", "embedding"] = Field(
        "span",
        description="span: exact probabilities of the student's own cuts of the text; what cannot "
        "be had from one pass of the teacher is in the tail. The others map token to token where "
        "both cut, and are wrong on numerals: common_tokens by bytes, min_ed to what is written "
        "most alike, embedding to the first token of the student's.",
    )
    chat_template: str | None = Field(
        None,
        description="For the teacher's side, as Axolotl's `chat_template`. Default: its own.",
    )
    check: int = Field(
        0,
        ge=0,
        le=100_000,
        description="At its start a capture says how much of the teacher's probability the records "
        "of a few rows carry. With a number, such as 200, they are also held to what the teacher "
        "writes there, by so many samples a place.",
    )

    @field_validator("check")
    @classmethod
    def _counts(cls, value: int) -> int:
        if 0 < value < LEAST_SAMPLES:
            raise ValueError(
                f"{value} samples are too few to count: half of them choose a token. Use 200, or "
                "0 for none"
            )
        return value

    k: Annotated[int, ReadBy("teacher", unless=("store", "text"))] = Field(
        64, ge=1, description="Of a live teacher: entries of a record, at most."
    )

    @field_validator("method", mode="before")
    @classmethod
    def _is_here(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower().replace("-", "_") in NOT_HERE:
            name = value.lower().replace("-", "_")
            raise ValueError(f"`{value}` is not among the methods: {NOT_HERE[name]}. Use span.")
        return value
