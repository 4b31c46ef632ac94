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
    "uld": "it compares sorted probabilities, whatever their tokens are, and needs the teacher "
    "beside the training",
    "gold": "its default merge takes another conditional than the text has",
    "embedding": "it needs a projection that is learnt beside the training",
    "alm": "its binarised likelihoods of spans are the records that `span` makes of tokens that "
    "the teacher splits",
}


class CrossTokenizerArgs(Block):
    """How a teacher's distributions over its tokens become the student's."""

    method: Literal["span"] = Field(
        "span",
        description="span: exact probabilities of the student's own cuts of the text; what cannot "
        "be had from one pass of the teacher is in the tail.",
    )
    chat_template: str | None = Field(
        None,
        description="For the teacher's side, as Axolotl's `chat_template`. Default: its own.",
    )

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
