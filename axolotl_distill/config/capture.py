"""`distill.capture`: what `axolotl distill capture` reads, and how it writes the teacher store."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_distill.address import is_address
from axolotl_distill.config.block import Block, PathText, ReadBy, expanded
from axolotl_distill.config.hidden import CaptureHiddenArgs
from axolotl_distill.config.teacher import TeacherArgs, refuse_beside

Method = Literal["topk", "nucleus", "sampled"]
METHOD_OF: dict[str, Method] = {
    "k": "topk",
    "p": "nucleus",
    "max_k": "nucleus",
    "draws": "sampled",
    "sampling_temperature": "sampled",
    "seed": "sampled",
}
"""Keys that only one method reads"""


class SpoolArgs(Block):
    """What a capture to an address keeps on this machine."""

    folder: PathText | None = Field(
        None,
        description="A local folder, whose file system has locks. Default: `axolotl-distill/"
        "captures` in Hugging Face's cache home.",
    )
    shards: int = Field(
        4, ge=1, description="Most shards in it, the one that is being written among them."
    )


class CaptureArgs(Block):
    """A teacher, the text it is to read, and what is kept of what it says."""

    teacher: TeacherArgs
    output: PathText = Field(
        description="Folder of the teacher store, or its address (s3://, gs://, hf://, …)."
    )
    spool: SpoolArgs | None = Field(
        None,
        description="Where shards of a store at an address wait until it has them.",
    )
    datasets: list[dict[str, Any]] | None = Field(
        None,
        description="Axolotl dataset entries to capture. Default: the config's own `datasets` "
        "that are not already a store.",
    )
    method: Method = Field(
        "sampled",
        description="What a record is. Default: that whose keys are given; else sampled, and topk "
        "where draws cannot be had (a server) or do not serve the loss (not forward_kl).",
    )
    k: Annotated[int, ReadBy("method", "topk")] = Field(
        64, ge=1, description="topk: entries a record."
    )
    p: Annotated[float, ReadBy("method", "nucleus")] = Field(
        0.98, gt=0.0, le=1.0, description="nucleus: probability mass, at T=1."
    )
    max_k: Annotated[int, ReadBy("method", "nucleus")] = Field(
        256, ge=1, description="nucleus: most entries a record."
    )
    draws: Annotated[int, ReadBy("method", "sampled")] = Field(
        16,
        ge=1,
        description="sampled: tokens above 1/draws of the mass are kept with their share, the rest "
        "is drawn in shares of 1/draws.",
    )
    sampling_temperature: Annotated[float, ReadBy("method", "sampled")] = Field(
        1.0,
        gt=0.0,
        description="sampled: T of the distribution. Default: `distill.temperature`.",
    )
    seed: Annotated[int, ReadBy("method", "sampled")] = Field(
        0, description="sampled: seed of the draws."
    )
    temperatures: Annotated[list[float], ReadBy("method", "topk", "nucleus")] = Field(
        [1.0, 2.0, 4.0],
        description="topk, nucleus: temperatures at which the tail's mass is stored; T=1 is always "
        "among them. Of a server that serves a tempered model: its own, and no other by default.",
    )
    batch_tokens: Annotated[int | None, ReadBy("teacher.server", None)] = Field(
        None,
        ge=1,
        description="Tokens in one forward pass of the teacher. Default: 8192, on a CPU 2048.",
    )
    hidden_states: CaptureHiddenArgs | None = Field(
        None,
        description="What layers of the teacher hand on is stored too, for `distill.hidden_states`"
        " without a live teacher. Off by default: thousands of bytes a token.",
    )
    shard_records: int = Field(
        262_144,
        ge=1,
        description="Records after which a shard is closed. With `hidden_states` the default is "
        "what takes half a GB, if that is fewer.",
    )

    @field_validator("teacher")
    @classmethod
    def _gives_logprobs(cls, teacher: TeacherArgs) -> TeacherArgs:
        if teacher.server is not None and teacher.server.engine == "openai":
            raise ValueError(
                "`server.engine` must be vllm or sglang: the OpenAI API has no log-probabilities "
                "of a given text. What came with its generations can be had with `axolotl distill "
                "import`."
            )
        return refuse_beside(teacher)

    @field_validator("datasets")
    @classmethod
    def _paths(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for entry in value or []:
            if isinstance(entry.get("path"), str):
                entry["path"] = expanded(entry["path"])
        return value

    @field_validator("temperatures")
    @classmethod
    def _in_order(cls, values: list[float]) -> list[float]:
        if any(value <= 0 for value in values):
            raise ValueError(f"temperatures must be positive, got {values}")
        return sorted({*values})

    @model_validator(mode="before")
    @classmethod
    def _method_of_the_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "method" in values:
            return values
        meant = {method for key, method in METHOD_OF.items() if key in values}
        return {**values, "method": meant.pop()} if len(meant) == 1 else values

    @model_validator(mode="after")
    def _with_what_is_said(self) -> "CaptureArgs":
        own = self.teacher.tempered
        if own != 1.0:
            self.settle(temperatures=[own])
        if own not in self.temperatures:
            self.temperatures = sorted({own, *self.temperatures})
        return self

    @model_validator(mode="after")
    def _spool_is_read(self) -> "CaptureArgs":
        if "spool" in self.model_fields_set and not is_address(self.output):
            raise ValueError(
                "`spool` is read where `output` is an address (s3://…) only, and it is a folder: "
                "its shards are written there at once. Remove `spool`."
            )
        return self

    @property
    def own_temperatures(self) -> list[float]:
        """`temperatures` as a store has them: 1 is at what the teacher says, which a server that
        serves a tempered model says at another."""
        return [temperature / self.teacher.tempered for temperature in self.temperatures]

    @model_validator(mode="after")
    def _server_has_no_draws(self) -> "CaptureArgs":
        if self.teacher.server is not None and "method" not in self.model_fields_set:
            self.settle(method="topk")
        if self.teacher.server is not None and self.method == "sampled":
            raise ValueError(
                "`method: sampled` needs the teacher's whole distribution, and a server gives its "
                "likeliest tokens only. Use `method: topk` or nucleus, or a teacher without "
                "`server`."
            )
        return self

    @model_validator(mode="after")
    def _server_has_no_layers(self) -> "CaptureArgs":
        if self.teacher.server is not None and self.hidden_states is not None:
            raise ValueError(
                "`hidden_states` needs a teacher whose layers can be read, and this one is behind "
                "a server. Name a model without `server`, or remove `hidden_states`."
            )
        return self

    def settle(self, **defaults: Any) -> None:
        """Defaults that depend on other keys. They do not count as written: what is dumped and read
        again finds them anew."""
        for key, value in defaults.items():
            if key not in self.model_fields_set:
                setattr(self, key, value)
                self.model_fields_set.discard(key)
