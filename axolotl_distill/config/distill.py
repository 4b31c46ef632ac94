"""The `distill:` block of an Axolotl YAML, as pydantic models.

Imports nothing heavy: the block is checked before torch, transformers or a model are touched.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from axolotl_distill.config.block import Block, PathText, expanded, parse_block
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.config.yaml_file import read_yaml
from axolotl_distill.errors import ConfigError
from axolotl_distill.show import foreign

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "tvd",
    "adaptive_kl",
]
READ_BY = {
    "beta": ("jsd",),
    "skew": ("skew_forward_kl", "skew_reverse_kl"),
    "akl_mu": ("adaptive_kl",),
}
Support = Literal["tail_bucket", "renormalize", "sampled"]
Method = Literal["topk", "nucleus", "sampled"]
PLUGIN = re.compile(r"axolotl_distill([.:][\w.:]+)?")
SERVER_HINT = "`{name: …, server: {base_url: http://…/v1, engine: vllm}}`."


class TeacherArgs(Block):
    """Where the training signal comes from: a store, or nothing but the text of the rows."""

    type: Literal["store", "text"] = "store"


class CaptureTeacherArgs(Block):
    """The model whose distributions `axolotl distill capture` stores: a Hugging Face model in this
    process, or one behind a vLLM or SGLang server."""

    type: Literal["model", "server"] = "model"
    path: PathText | None = Field(None, description="model: a local folder or a hub name.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="model.")
    device: str = Field("auto", description="model: auto, cpu, cuda, cuda:1, mps, …")
    trust_remote_code: bool = Field(False, description="model.")
    name: str | None = Field(None, description="server: the model as the server names it.")
    server: ServerArgs | None = Field(None, description="server: where it is; engine vllm, sglang.")
    terms: str | None = Field(
        None,
        description="Your own words on why you may train on this model's output; needed where its "
        "terms forbid it. They are kept in the store's card.",
    )

    @property
    def model_name(self) -> str:
        """What the model is called, wherever it runs."""
        return self.name if self.type == "server" else self.path

    @model_validator(mode="before")
    @classmethod
    def _type_follows_server(cls, values: Any) -> Any:
        if isinstance(values, dict) and "type" not in values and values.get("server"):
            return {**values, "type": "server"}
        return values

    @model_validator(mode="after")
    def _goes_together(self) -> "CaptureTeacherArgs":
        keys = {
            "model": ("path", "dtype", "device", "trust_remote_code"),
            "server": ("name", "server"),
        }
        for other, names in keys.items():
            for key in names if other != self.type else ():
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"`{key}` is for `type: {other}`, and `type` is {self.type}. Remove it."
                    )
        for key in ("path",) if self.type == "model" else ("name", "server"):
            if getattr(self, key) is None:
                raise ValueError(
                    f"`type: {self.type}` needs `{key}`: "
                    + ("a local folder or a hub name." if self.type == "model" else SERVER_HINT)
                )
        if self.server is not None and self.server.engine == "openai":
            raise ValueError(
                "`server.engine` must be vllm or sglang: the OpenAI API has no log-probabilities "
                "of a given text. What came with its generations can be had with `axolotl distill "
                "import`."
            )
        return self


class CaptureArgs(Block):
    """What `axolotl distill capture` reads, and how it writes the teacher store."""

    teacher: CaptureTeacherArgs
    output: PathText = Field(description="Folder of the teacher store.")
    datasets: list[dict[str, Any]] | None = Field(
        None,
        description="Axolotl dataset entries to capture. Default: the config's own `datasets` "
        "that are not already a store.",
    )
    method: Method = "topk"
    k: int = Field(64, ge=1, description="topk: entries a record.")
    p: float = Field(0.98, gt=0.0, le=1.0, description="nucleus: probability mass, at T=1.")
    max_k: int = Field(256, ge=1, description="nucleus: most entries a record.")
    draws: int = Field(50, ge=1, description="sampled: draws a record.")
    sampling_temperature: float = Field(1.0, gt=0.0, description="sampled: T of the draws.")
    seed: int = Field(0, description="sampled: seed of the draws.")
    temperatures: list[float] = Field(
        [1.0, 2.0, 4.0],
        description="Temperatures at which the tail's mass is stored; T=1 is always among them.",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens in one forward pass of the teacher. Default: 8192, on a CPU 2048.",
    )
    shard_records: int = Field(262_144, ge=1, description="Records after which a shard is closed.")

    @field_validator("teacher", mode="before")
    @classmethod
    def _path_is_enough(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("datasets")
    @classmethod
    def _paths(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for entry in value or []:
            if isinstance(entry.get("path"), str):
                entry["path"] = expanded(entry["path"])
        return value

    @field_validator("temperatures")
    @classmethod
    def _with_one(cls, values: list[float]) -> list[float]:
        if any(value <= 0 for value in values):
            raise ValueError(f"temperatures must be positive, got {values}")
        return sorted({1.0, *values})

    @model_validator(mode="after")
    def _server_has_no_draws(self) -> "CaptureArgs":
        if self.teacher.type == "server" and self.method == "sampled":
            raise ValueError(
                "`method: sampled` needs the teacher's whole distribution, and a server gives its "
                "likeliest tokens only. Use `method: topk` or nucleus, or a teacher of `type: "
                "model`."
            )
        return self


class DistillArgs(Block):
    """How the student learns. The loss of one supervised token is

    (1 − alpha)·CE(student, label) + alpha·T²·D(teacher_T ‖ student_T)      [nats]
    """

    alpha: float = Field(0.7, ge=0.0, le=1.0, description="Weight of the teacher's divergence.")
    temperature: float = Field(2.0, gt=0.0, description="T, for teacher and student alike.")
    divergence: Divergence = "forward_kl"
    beta: float = Field(0.5, ge=0.0, le=1.0, description="jsd: 0 = forward KL, 1 = reverse KL.")
    skew: float = Field(
        0.1, ge=0.0, lt=1.0, description="skew_*: share of the other side mixed in."
    )
    akl_mu: float = Field(0.5, gt=0.0, lt=1.0, description="adaptive_kl: teacher mass of the head.")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Of the cross-entropy.")
    support: Support | None = Field(
        None,
        description="What a sparse teacher means. Default: tail_bucket, or sampled for a store "
        "of draws.",
    )
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    teacher: TeacherArgs = TeacherArgs()
    capture: CaptureArgs | None = None

    @model_validator(mode="after")
    def _text_has_no_distribution(self) -> "DistillArgs":
        if self.teacher.type != "text":
            return self
        if self.alpha > 0 and "alpha" in self.model_fields_set:
            raise ValueError(
                f"`alpha: {self.alpha:g}` weighs a divergence from the teacher's distributions, "
                "and `teacher.type: text` has none: the loss is the cross-entropy on what the "
                "teacher wrote. Remove `alpha`, or train on a store."
            )
        self.alpha = 0.0
        for key in ("temperature", "divergence", "support"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"`{key}: {getattr(self, key)}` is read with a teacher store only, and "
                    f"`teacher.type` is text. Remove `{key}`, or train on a store."
                )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> "DistillArgs":
        for key, readers in READ_BY.items():
            seen = getattr(self, key)
            if seen != type(self).model_fields[key].default and self.divergence not in readers:
                raise ValueError(
                    f"`{key}: {seen:g}` is read by divergence {' and '.join(readers)} only, and "
                    f"`divergence` is {self.divergence}. Remove `{key}`, or change `divergence`."
                )
        if self.support == "sampled" and self.divergence != "forward_kl":
            raise ValueError(
                f"`divergence: {self.divergence}` is not defined for `support: sampled`: draws "
                "give an unbiased forward_kl only. Use forward_kl, or capture topk or nucleus."
            )
        return self


class DistillConfig(BaseModel):
    """Mixed into Axolotl's own input schema: one more top-level key."""

    distill: DistillArgs | None = None


def parse_distill(block: Any) -> DistillArgs:
    """The `distill:` block of a YAML as DistillArgs.

    Raises ConfigError with one line a fault: the full key, what was seen and what was expected.
    """
    return parse_block(DistillArgs, {} if block is None else block, "distill")


def capture_args(args: CaptureArgs | None, teacher: str | None, output: str | None) -> CaptureArgs:
    """`distill.capture` with a teacher and an output given on the command line in place of its own.

    Raises ConfigError where one of them is given nowhere.
    """
    if args is None and not (teacher and output):
        raise ConfigError(
            "The config has no `distill.capture:` block. Add one with `teacher:` and `output:`, "
            "or give both --teacher and --output."
        )
    block = args.model_dump() if args is not None else {}
    if teacher:
        given = block.get("teacher", {})
        key = "name" if given.get("type") == "server" else "path"
        block["teacher"] = {**given, key: teacher}
    if output:
        block["output"] = output
    return parse_distill({"capture": block}).capture


def check_config_file(path: str | Path) -> DistillArgs:
    """The `distill:` block of an Axolotl YAML, found wrong before Axolotl is imported.

    Raises ConfigError for what is no YAML, has no `distill:` block or not the plugin (and names
    what was meant), and for a wrong key or value in the block.
    """
    values = read_yaml(path)
    if "distill" not in values:
        near = _near("distill", values)
        if near is None and values.keys() & {"generate", "filter"}:
            raise ConfigError(
                f"{path} is a recipe and not an Axolotl config: it is for `axolotl distill "
                "generate` and `axolotl distill filter`."
            )
        meant = f" Is `{near}:` meant?" if near else " Add one; docs/guide.md has its keys."
        raise ConfigError(f"{path} has no `distill:` block.{meant}")
    check_plugin_listed(values, path)
    try:
        return parse_distill(values["distill"])
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None


def check_plugin_listed(values: dict[str, Any], path: str | Path) -> None:
    """Raises ConfigError where a config with a `distill:` block does not list the plugin that reads
    it: Axolotl would drop the block without a word."""
    plugins = values.get("plugins")
    listed = "`plugins: [axolotl_distill]`"
    if plugins is None:
        near = _near("plugins", values)
        meant = f", but `{near}:`" if near else ""
        raise ConfigError(f"{path} has a `distill:` block and no `plugins:`{meant}. Add {listed}.")
    if not isinstance(plugins, list):
        raise ConfigError(f"{path}: `plugins` must be a list, as in {listed}.")
    names = [name for name in plugins if isinstance(name, str)]
    if not any(PLUGIN.fullmatch(name) for name in names):
        near = get_close_matches("axolotl_distill", names, n=1, cutoff=0.7)
        meant = f" Is `{foreign(near[0])}` meant to be it?" if near else ""
        raise ConfigError(
            f"{path}: `plugins` does not list axolotl_distill.{meant} Write {listed}."
        )


def _near(key: str, values: dict[str, Any]) -> str | None:
    """The key of `values` that may have been meant as `key`."""
    lower = {str(name).lower(): str(name) for name in values}
    near = get_close_matches(key, lower, n=1, cutoff=0.7)
    return foreign(lower[near[0]]) if near else None
