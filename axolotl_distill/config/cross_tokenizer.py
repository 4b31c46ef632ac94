"""`distill.cross_tokenizer`: a teacher that has another tokenizer than the student."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block, ReadBy

# What others call it, and why it is not here.
NOT_HERE = {
    "common_tokens": "it keeps the tokens that both have, whatever may follow them: on numerals "
    "that is another distribution. `span` gives such tokens the teacher's own probability where "
    "that is theirs",
    "min_ed": "it pairs tokens by how alike they are written, and no such pair is a probability",
    "embedding": "it needs a projection that is learnt beside the training",
}


BESIDE = ("uld", "gold", "alm")
"""Methods that make no record: they need the teacher beside the training"""
NOT_WITH = ("divergence", "support", "label_smoothing", "backend")
"""Keys of `distill` that such a method does not read"""


class CrossTokenizerArgs(Block):
    """How a teacher's distributions over its tokens become the student's."""

    method: Literal["span", "uld", "gold", "alm"] = Field(
        "span",
        description="span: exact probabilities of the student's own cuts of the text; what cannot "
        "be had from one pass of the teacher is in the tail. With a live teacher also uld, sorted "
        "probabilities; gold, tokens that both have, and sorted others; alm, likelihoods of pieces "
        "of the text.",
    )
    chat_template: str | None = Field(
        None,
        description="For the teacher's side, as Axolotl's `chat_template`. Default: its own.",
    )

    k: Annotated[int, ReadBy("method", "span"), ReadBy("teacher", unless=("store", "text"))] = (
        Field(64, ge=1, description="Of a live teacher: entries of a record, at most.")
    )
    weights: Annotated[list[float] | None, ReadBy("method", "gold")] = Field(
        None,
        description="gold: [of tokens that both have, of the others]. Default: the share of the "
        "teacher's tokens that both have, and the rest of 1.",
    )
    binarization_temperature: Annotated[float, ReadBy("method", "alm")] = Field(
        1.0, ge=1.0, description="alm: tau; a piece counts with its probability to the 1/tau."
    )
    threshold: Annotated[float, ReadBy("method", "alm")] = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="alm: pieces are joined where the teacher begins a word or ends the turn next "
        "with less than this probability.",
    )

    @field_validator("weights")
    @classmethod
    def _two_of_them(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (len(value) != 2 or min(value) < 0 or max(value) == 0):
            raise ValueError("must be two numbers from 0, not both 0, as in [0.8, 0.2]")
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _is_here(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower().replace("-", "_") in NOT_HERE:
            name = value.lower().replace("-", "_")
            raise ValueError(f"`{value}` is not among the methods: {NOT_HERE[name]}. Use span.")
        return value
