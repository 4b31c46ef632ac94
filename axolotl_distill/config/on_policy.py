"""`distill.on_policy`: the student writes, and the teacher grades every token."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_distill.address import is_address
from axolotl_distill.config.block import Block, PathText, expanded
from axolotl_distill.config.server import ServerArgs


class RolloutServerArgs(ServerArgs):
    """A vLLM server that holds the student: it is given the adapter, or all weights where there is
    none, and writes with them."""

    engine: Literal["vllm"] = Field("vllm", description="No other can be given weights yet.")
    concurrency: int = Field(
        64, ge=1, description="Completions under way at once, asked for by each process."
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="Name by which it serves the base model. Default: `base_model`, or the one "
        "model that is served.",
    )
    adapters: PathText | None = Field(
        None,
        description="Folder that the adapter, or all weights where there is none, is written to, "
        "which the server reads. Default: rollout-adapters or rollout-weights in `output_dir`.",
    )
    adapters_there: str | None = Field(
        None, min_length=1, description="The same folder as the server names it. Default: as here."
    )
    tolerance: float = Field(
        0.1,
        gt=0.0,
        description="Nats a token by which the server's log-probabilities may differ from the "
        "trainer's, in the mean over a fixed text.",
    )


class OnPolicyArgs(Block):
    """How often a step learns from text that a model has just written, and how it writes.

    The prompts are those of `datasets`: what stands before the last stretch of learnt tokens of a
    row. The divergence and its beta are those of `distill`.
    """

    MEANT: ClassVar[dict[str, str]] = {
        "lambda": "lmbda",
        "beta": "distill.beta, with `distill.divergence: jsd` (0 forward KL, 1 reverse KL)",
        "max_tokens": "max_new_tokens",
        "max_completion_length": "max_new_tokens",
    }

    lmbda: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the steps that learn from the student's text."
    )
    seq_kd: bool = Field(
        False, description="The other steps learn from text of the teacher, not from the data."
    )
    max_new_tokens: int = Field(256, ge=1, description="Of a completion.")
    temperature: float = Field(
        1.0, gt=0.0, description="Of the sampling; that of the loss is `distill.temperature`."
    )
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Of the sampling.")
    top_k: int = Field(0, ge=0, description="Of the sampling; 0 = all tokens.")
    batch_size: int = Field(64, ge=1, description="Completions under way at once, in each process.")
    server: RolloutServerArgs | None = Field(
        None, description="A vLLM server that writes instead of the student's own `generate`."
    )
    truncated: Literal["keep", "drop"] = Field(
        "keep", description="Completions that end for want of room: learnt from, or left out."
    )
    keep: PathText | None = Field(
        None,
        description="Folder that takes what the student writes, as trajectories, and what the "
        "teacher says of it, as a teacher store.",
    )
    evaluate: int = Field(
        0,
        ge=0,
        description="Completions of the student's that every evaluation grades, in each process; "
        "0 = the evaluation is on the data alone.",
    )
    samples: int = Field(1, ge=0, description="Completions to show whenever the loss is logged.")

    @field_validator("keep")
    @classmethod
    def _is_a_folder(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if is_address(value):
            raise ValueError(
                "rollouts are kept in a local folder: name one, and copy its store to an address "
                "with `axolotl distill store push FOLDER/store ADDRESS`"
            )
        return expanded(value)

    @model_validator(mode="after")
    def _says_how_many_once(self) -> "OnPolicyArgs":
        if self.server is not None and "batch_size" in self.model_fields_set and not self.seq_kd:
            raise ValueError(
                f"`batch_size: {self.batch_size}` is not read with `server`, which batches by "
                "itself; `server.concurrency` is how many completions it is asked for at once. "
                "Remove it."
            )
        return self
