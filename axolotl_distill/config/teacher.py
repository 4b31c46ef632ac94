"""`teacher:`, the model that is learned from; the same block wherever a YAML names one."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from axolotl_distill.config.block import Block, PathText, ReadBy, expanded
from axolotl_distill.config.server import ServerArgs

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
NOT_SELF = ReadBy("self", unless=(True,))
LOCAL = (ReadBy("server", None), NOT_SELF)
MODEL = "`{model: NAME}`, or `{model: NAME, server: {base_url: http://…/v1, engine: vllm}}`"


class ModelArgs(Block):
    """A model behind a server or, without one, a Hugging Face model that is loaded here."""

    MEANT: ClassVar[dict[str, str]] = {
        "name": "model",
        "path": "model",
        "name_or_path": "model",
        "base_url": "server: {base_url: …}",
        "load_in_4bit": "quantization: 4bit",
        "load_in_8bit": "quantization: 8bit",
        "torch_dtype": "dtype",
        "lora": "adapter",
        "peft": "adapter",
        "temperature": "tempered, for a server of what `axolotl distill temper` wrote",
    }

    model: PathText = Field(description="Local folder or hub name; with a server: as it is served.")
    server: Annotated[ServerArgs | None, NOT_SELF] = Field(
        None, description="Where it runs; without one it is loaded here."
    )
    revision: Annotated[str | None, *LOCAL] = Field(
        None, description="Commit, tag or branch of a model on the hub."
    )
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], *LOCAL] = Field(
        "auto", description="Of the weights; auto: the checkpoint's."
    )
    device: Annotated[str, ReadBy("device_map", None), *LOCAL] = Field(
        "auto", description="auto, cpu, cuda, cuda:1, mps, …: the one that holds all of it."
    )
    device_map: Annotated[str | dict[str, int | str] | None, *LOCAL] = Field(
        None,
        description=f"For a model larger than one device: {', '.join(SPREAD)}, or a mapping of "
        "modules to devices, as transformers takes them.",
    )
    quantization: Annotated[Literal["4bit", "8bit"] | None, *LOCAL] = Field(
        None, description="By bitsandbytes while it is loaded: 4bit is nf4, 8bit is LLM.int8()."
    )
    trust_remote_code: Annotated[bool, *LOCAL] = Field(
        False, description="Run code that the checkpoint brings."
    )

    @field_validator("device_map")
    @classmethod
    def _spreads(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in SPREAD:
            raise ValueError(
                f"must be one of {', '.join(SPREAD)}, or a mapping of modules to devices; for one "
                "device set `device`"
            )
        if value == {}:
            raise ValueError("maps no module; `{'': 0}` maps all of them to the first GPU")
        return value

    @property
    def origin(self) -> dict[str, Any]:
        """What `from_pretrained` takes beside the name, be it for weights, config or tokenizer."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}


class TeacherArgs(ModelArgs):
    """The model that is learned from. A bare string is its name.

    {model, adapter, revision, dtype, device, device_map, quantization, sharded, trust_remote_code,
     terms}
    {model, server: {…}, tokenizer, tempered, terms}
    {self: true, weights | ema, context, context_column}       the student itself
    """

    model: Annotated[str, NOT_SELF] = Field(
        "", description="Local folder or hub name; with a server: as it is served."
    )
    adapter: Annotated[PathText | None, *LOCAL] = Field(
        None, description="A PEFT adapter on top of `model`: local folder or hub name."
    )
    sharded: Annotated[
        bool | None, *LOCAL, ReadBy("quantization", None), ReadBy("device_map", None)
    ] = Field(
        None,
        description="Beside a training in several processes: each holds a part of every layer, or "
        "the whole model. Default: sharded where the student is.",
    )
    tokenizer: Annotated[PathText | None, ReadBy("server", unless=(None,)), NOT_SELF] = Field(
        None,
        description="Of a server, with `cross_tokenizer`: the model's tokenizer, a local folder or "
        "hub name. Default: `model`.",
    )
    tempered: Annotated[float, ReadBy("server", unless=(None,)), NOT_SELF] = Field(
        1.0,
        gt=0.0,
        description="What the server serves was written by `axolotl distill temper` with this "
        "--temperature: what it says for T = 1 is the teacher's at this one.",
    )
    self: bool = Field(False, description="The student, with `weights` and `context`.")
    weights: Annotated[Literal["base", "now"] | None, ReadBy("self", True)] = Field(
        None,
        description="Of `self`: base, the student with its LoRA adapter off; now, as it is in the "
        "step that it grades, which needs `context`. Default: now with `context`, else base.",
    )
    ema: Annotated[float | None, ReadBy("self", True), ReadBy("weights", None)] = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Of `self`: its weights are ema·(what they were) + (1 - ema)·(the student's) "
        "after every optimizer step.",
    )
    context: Annotated[str | None, ReadBy("self", True)] = Field(
        None,
        description="What only the teacher sees, before the text; special tokens in it are read as "
        "such. With `context_column: NAME`, {NAME} in it is what the row has there.",
    )
    context_column: Annotated[str | None, ReadBy("self", True)] = Field(
        None,
        min_length=1,
        description="A column of the rows: text of each that only the teacher sees, before it.",
    )
    terms: Annotated[str | None, NOT_SELF] = Field(
        None,
        description="Your own words on why you may train on this model's output; needed where its "
        "terms forbid it, or allow research only. They are kept in the card of what is made.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_enough(cls, values: Any) -> Any:
        if isinstance(values, dict) and "type" in values:
            raise ValueError(
                "`type` is no key of a teacher: one with `server` is behind it, one without is "
                f"loaded here. Remove it. A teacher is {MODEL}; `distill.teacher` may also be the "
                "bare word `store` or `text`."
            )
        if values == "self":
            return {"self": True}
        return {"model": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _is_somebody(self) -> "TeacherArgs":
        if self.self:
            self._can_teach_itself()
            return self
        if not self.model.strip():
            raise ValueError(f"no `model`: a teacher is {MODEL}.")
        if self.server is None:
            self.model = expanded(self.model)
            if self.revision is not None and Path(self.model).exists():
                raise ValueError(
                    f"`revision: {self.revision}` is read for a model on the hub only, and "
                    f"`model: {self.model}` lies here. Remove it."
                )
        return self

    def _can_teach_itself(self) -> None:
        if self.context == "":
            raise ValueError(
                "`context` is empty. Write down what only the teacher sees, or remove it."
            )
        place = f"{{{self.context_column}}}"
        if self.context_column is not None and place not in (self.context or place):
            raise ValueError(
                f"`context` has no {place}, which would be what each row has in `context_column: "
                f"{self.context_column}`. Write down where it stands, or remove `context`: the "
                "column's text is then all that is seen."
            )
        if self.weights == "now" and not self.sees_more:
            raise ValueError(
                "`weights: now` without `context` is the student graded by itself, from which "
                "there is nothing to learn. Set `context` or `context_column`, or in place "
                "of it `weights: base` or `ema: 0.99`."
            )

    @property
    def reads_with(self) -> str:
        """Where its tokenizer is."""
        return self.tokenizer or self.model

    @property
    def sees_more(self) -> bool:
        """Whether it reads something before a text."""
        return self.context is not None or self.context_column is not None

    @property
    def own_weights(self) -> Literal["base", "now", "average"]:
        """Whose weights `self` has: those below the student's adapter, all as they are, or
        averaged over steps."""
        if self.ema is not None:
            return "average"
        return self.weights or ("now" if self.sees_more else "base")


def context_of(column: str, context: str | None, value: str) -> str:
    """What a teacher with this `context_column` and `context` reads before the text of a row that
    has `value` in the column."""
    return value if context is None else context.replace(f"{{{column}}}", value)


def refuse_beside(teacher: TeacherArgs) -> TeacherArgs:
    """What a teacher is beside its student while that learns, and nowhere else: raises
    ValueError."""
    if teacher.self:
        raise ValueError(
            f"`self: true` is the student while it is trained, and here is none. Name a model: "
            f"{MODEL}."
        )
    if teacher.sharded is not None:
        raise ValueError(
            "`sharded` spreads a teacher over the processes that train its student, and here is "
            "none. Remove it; a model larger than one device takes `device_map: auto`."
        )
    return teacher
