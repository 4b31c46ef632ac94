"""`distill.cross_tokenizer`: a teacher that has another tokenizer than the student."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import Block, ReadBy
from axolotl_distill.config.teacher import TeacherArgs

LEAST_SAMPLES = 20
RECORDS = ("span", "common_tokens", "min_ed", "embedding")
"""Methods that make records of the student's tokens, for a store or at once"""
BESIDE = ("uld", "gold", "alm")
"""Methods that make no record: they need the teacher beside the training"""
NOT_WITH = ("divergence", "support", "label_smoothing", "backend")
"""Keys of `distill` that such a method does not read"""


class CrossTokenizerArgs(Block):
    """How a teacher's distributions over its tokens become the student's."""

    method: Literal["span", "common_tokens", "min_ed", "embedding", "uld", "gold", "alm"] = Field(
        "span",
        description="span: exact probabilities of the student's own cuts of the text; what cannot "
        "be had from one pass of the teacher is in the tail. common_tokens, min_ed and embedding "
        "map token to token where both cut, and are wrong on numerals: by bytes, to what is "
        "written most alike, to the first token of the student's. With a live teacher also uld, "
        "sorted probabilities; gold, tokens that both have, and sorted others; alm, likelihoods of "
        "pieces of the text.",
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

    k: Annotated[int, ReadBy("method", *RECORDS), ReadBy("teacher", unless=("store", "text"))] = (
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

    def of_server(self, key: str, teacher: TeacherArgs) -> None:
        """Raises ValueError for what a teacher behind a server, at `key`, cannot say."""
        if teacher.server is None:
            return
        here = "Load the teacher here (without `server`)"
        if self.method in BESIDE:
            raise ValueError(
                f"`{key}.server` does not go with `cross_tokenizer.method: {self.method}`, which "
                "compares all that the teacher says: a server names its likeliest tokens. Use "
                f"`method: span`. {here}, if it is to be {self.method}."
            )
        if self.check:
            raise ValueError(
                f"`cross_tokenizer.check: {self.check}` does not go with `{key}.server`: the "
                "teacher would have to write from token ids. Remove it; `axolotl distill align` "
                "holds a pair to an oracle, with a model that is loaded."
            )
        if teacher.tempered != 1.0:
            raise ValueError(
                f"`{key}.tempered: {teacher.tempered:g}` does not go with `cross_tokenizer`, whose "
                "records are at T = 1. Serve the original model, and remove the key."
            )

    @field_validator("weights")
    @classmethod
    def _two_of_them(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (len(value) != 2 or min(value) < 0 or max(value) == 0):
            raise ValueError("must be two numbers from 0, not both 0, as in [0.8, 0.2]")
        return value
