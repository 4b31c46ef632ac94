"""The `distill:` block of an Axolotl YAML.

Imports nothing heavy: the block is checked before torch, transformers or a model are touched.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    Tag,
    field_serializer,
    field_validator,
    model_validator,
)

from axolotl_distill.config.block import Block, ReadBy, parse_block
from axolotl_distill.config.cache import CacheArgs
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.choice import ChoiceArgs, chooses, refuse_with_choices
from axolotl_distill.config.cross_tokenizer import BESIDE, NOT_WITH, CrossTokenizerArgs
from axolotl_distill.config.hidden import HiddenArgs, refuse_hidden
from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError

Divergence = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "tvd",
    "adaptive_kl",
]
Support = Literal["tail_bucket", "renormalize", "sampled"]
STORE_TYPE = "axolotl_distill.store"
STORE_MODULE = "axolotl_distill.host.datasets.store"
"""What the plugin makes of the type, so that Axolotl finds it."""
WORDS = ("store", "text")


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "(a word)"
    return "(choices)" if chooses(value) else "(a block)"


Source = Annotated[
    Annotated[Literal["store", "text"], Tag("(a word)")]
    | Annotated[TeacherArgs, Tag("(a block)")]
    | Annotated[ChoiceArgs, Tag("(choices)")],
    Discriminator(_kind),
]
NOT_TEXT = ReadBy("teacher", unless=("text",))


class DistillArgs(Block):
    """How the student learns. The loss of one supervised token is

    (1 − alpha)·CE(student, label) + alpha·T²·D(teacher_T ‖ student_T)      [nats]
    """

    teacher: Source = Field(
        "store",
        description="Where the signal comes from: store; text, which is nothing but the rows; or a "
        "teacher who answers while the student trains: its block, a model's name, or self; or "
        "several, of whom a column of the row names one: {column, choices}. "
        "Default: store where an entry of `datasets` is one, else text.",
    )
    alpha: Annotated[float, NOT_TEXT] = Field(
        0.7, ge=0.0, le=1.0, description="Weight of the teacher's divergence; 0 with text."
    )
    temperature: Annotated[float, NOT_TEXT] = Field(
        1.0, gt=0.0, description="T, for teacher and student alike."
    )
    divergence: Annotated[Divergence, NOT_TEXT] = "forward_kl"
    beta: Annotated[float, ReadBy("divergence", "jsd")] = Field(
        0.5, ge=0.0, le=1.0, description="jsd: 0 = forward KL, 1 = reverse KL."
    )
    skew: Annotated[float, ReadBy("divergence", "skew_forward_kl", "skew_reverse_kl")] = Field(
        0.1, ge=0.0, lt=1.0, description="skew_*: share of the other side mixed in."
    )
    akl_mu: Annotated[float, ReadBy("divergence", "adaptive_kl")] = Field(
        0.5, gt=0.0, lt=1.0, description="adaptive_kl: teacher mass of the head."
    )
    k: Annotated[int, ReadBy("teacher.server", unless=(None,))] = Field(
        64, ge=1, description="Likeliest tokens that a teacher behind a server is asked for."
    )
    on_policy: OnPolicyArgs | None = Field(
        None, description="The student writes, and the teacher grades what it wrote."
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Of the cross-entropy.")
    support: Annotated[Support | None, NOT_TEXT] = Field(
        None,
        description="What a sparse teacher means. Default: tail_bucket, or sampled for a store "
        "of draws.",
    )
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    hidden_states: HiddenArgs | None = Field(
        None,
        description="A second term of the loss, on what layers hand on. Off by default.",
    )
    cache: CacheArgs | None = None
    capture: CaptureArgs | None = None
    cross_tokenizer: Annotated[CrossTokenizerArgs | None, NOT_TEXT] = Field(
        None, description="For a teacher with another tokenizer than the student's."
    )

    @field_validator("teacher", mode="before")
    @classmethod
    def _a_name_is_enough(cls, value: Any) -> Any:
        if not isinstance(value, str) or value in WORDS:
            return value
        if value == "self":
            return {"self": True}
        if near := get_close_matches(value.lower(), WORDS, n=1):
            raise ValueError(f"must be store, text, or a teacher; did you mean `{near[0]}`?")
        return {"model": value}

    @model_validator(mode="after")
    def _goes_together(self) -> "DistillArgs":
        if isinstance(self.teacher, ChoiceArgs):
            refuse_with_choices(self)
        for key, teacher in self.teachers.items():
            try:
                self._answers_while_training(teacher)
            except ValueError as error:
                raise ValueError(
                    f"of `{key}`: {error}" if len(self.teachers) > 1 else str(error)
                ) from None
        if self.on_policy is not None and not self.teachers:
            raise ValueError(
                "`on_policy` needs a teacher that grades what the student writes: `teacher: NAME`, "
                "its block, or self. A store and text know nothing of it."
            )
        refuse_hidden(self)
        if self.teacher == "text":
            self.alpha = 0.0
            # It was not written: what is dumped and read again has it as little.
            self.model_fields_set.discard("alpha")
        if self.cross_tokenizer is not None:
            self._crosses()
        else:
            self._has_one_tokenizer()
        if self.capture is not None:
            self._settle(self.capture)
        if self.support == "sampled" and self.divergence != "forward_kl":
            raise ValueError(
                f"`divergence: {self.divergence}` is not defined for `support: sampled`: draws "
                "give an unbiased forward_kl only. Use forward_kl, or capture topk or nucleus."
            )
        return self

    @property
    def teachers(self) -> dict[str, TeacherArgs]:
        """Those that answer while the student trains, by their keys in this block."""
        if isinstance(self.teacher, ChoiceArgs):
            return {f"teacher.choices.{k}": teacher for k, teacher in self.teacher.choices.items()}
        return {"teacher": self.teacher} if isinstance(self.teacher, TeacherArgs) else {}

    def _has_one_tokenizer(self) -> None:
        captured = {} if self.capture is None else {"capture.teacher": self.capture.teacher}
        for key, teacher in (self.teachers | captured).items():
            if teacher.tokenizer is not None:
                raise ValueError(
                    f"`{key}.tokenizer` is read with `cross_tokenizer` only: without it a server "
                    "is held to the student's tokenizer. Remove it, or set `cross_tokenizer: "
                    "{method: span}`."
                )

    def _crosses(self) -> None:
        """The probabilities of the student's tokens are known at T = 1, and of the likeliest."""
        remedy = "Remove it, or learn from a teacher with the student's tokenizer."
        if isinstance(self.teacher, TeacherArgs):
            self._crosses_live(self.teacher)
        assert self.cross_tokenizer is not None
        if (method := self.cross_tokenizer.method) in BESIDE:
            self._compares_beside(method)
            return
        if self.temperature != 1.0:
            raise ValueError(
                f"`temperature: {self.temperature:g}` does not go with `cross_tokenizer`: what is "
                "in the tail is a sum over tokens of the student's that are not known one by one, "
                f"so its mass is known at T = 1 only. {remedy}"
            )
        if self.support in ("renormalize", "sampled"):
            raise ValueError(
                f"`support: {self.support}` does not go with `cross_tokenizer`: many records have "
                f"one entry and a tail, which only `tail_bucket` reads. {remedy}"
            )
        capture = self.capture
        if capture is None:
            return
        capture.settle(method="topk", temperatures=[1.0])
        if capture.method != "topk":
            raise ValueError(
                f"`capture.method: {capture.method}` does not go with `cross_tokenizer`, whose "
                "records are the likeliest tokens and a tail. Use `method: topk`."
            )
        if capture.temperatures != [1.0]:
            raise ValueError(
                f"`capture.temperatures: {capture.temperatures}` do not go with `cross_tokenizer`: "
                f"the tail is known at T = 1 only. {remedy}"
            )
        self.cross_tokenizer.of_server("capture.teacher", capture.teacher)

    def _crosses_live(self, teacher: TeacherArgs) -> None:
        if teacher.self:
            raise ValueError(
                "`teacher: self` is the student, whose tokenizer is its own. Remove "
                "`cross_tokenizer`."
            )
        assert self.cross_tokenizer is not None
        self.cross_tokenizer.of_server("teacher", teacher)
        if teacher.sharded:
            raise ValueError(
                "`teacher.sharded: true` does not go with `cross_tokenizer` yet: the processes "
                "would ask a different number of times. Remove it; each then holds the teacher."
            )
        if self.cross_tokenizer.check and self.capture is None:
            raise ValueError(
                "`cross_tokenizer.check` is read by a capture only, and a live teacher's records "
                "are not stored. Remove it; `axolotl distill align` holds a pair to an oracle."
            )
        if self.on_policy is not None:
            raise ValueError(
                "`on_policy` does not go with `cross_tokenizer` and a live teacher: what the "
                "student writes has no messages that the teacher's template could write. Remove "
                "one of the two."
            )

    def _compares_beside(self, method: str) -> None:
        """What goes with a method that compares all that both say, each of its own tokens."""
        if not isinstance(self.teacher, TeacherArgs) or self.capture is not None:
            where = "`capture`" if self.capture is not None else f"`teacher: {self.teacher}`"
            raise ValueError(
                f"`cross_tokenizer.method: {method}` does not go with {where}: it needs all that "
                "the teacher says, beside the training, and no store has it. Use span, or name the "
                "model as `teacher`."
            )
        for key in NOT_WITH:
            if key in self.model_fields_set:
                raise ValueError(
                    f"`{key}` is not read with `cross_tokenizer.method: {method}`, which compares "
                    "in a way of its own. Remove it."
                )
        if self.temperature != 1.0:
            raise ValueError(
                f"`temperature: {self.temperature:g}` does not go with `cross_tokenizer.method: "
                f"{method}`, which compares at T = 1. Remove it."
            )

    def _answers_while_training(self, teacher: TeacherArgs) -> None:
        if self.support == "sampled":
            raise ValueError(
                "`support: sampled` is for a store of draws, and this teacher gives more than "
                "draws. Remove it."
            )
        if self.on_policy is not None and self.on_policy.seq_kd and teacher.server is not None:
            raise ValueError(
                "`on_policy.seq_kd` has the teacher write, which one behind a `server` cannot be "
                "asked for yet. Use a teacher without `server`, or let it write before with "
                "`axolotl distill generate`."
            )
        if teacher.server is None:
            if self.support is not None:
                raise ValueError(
                    f"`support: {self.support}` is read for a store or a server only: this teacher "
                    "gives its whole distribution. Remove it."
                )
        elif teacher.server.engine == "openai":
            raise ValueError(
                "`teacher.server.engine` must be vllm or sglang: the OpenAI API has no "
                "log-probabilities of a given text."
            )
        elif self.temperature != teacher.tempered and self.support != "renormalize":
            raise ValueError(
                f"`temperature: {self.temperature:g}` cannot be had from a server, which gives its "
                f"log-probabilities at T={teacher.tempered:g}: what its tail holds at another "
                f"temperature is not known. Use {teacher.tempered:g}; serve what `axolotl distill "
                f"temper MODEL OUT --temperature {self.temperature:g}` writes, and say so with "
                f"`teacher.tempered: {self.temperature:g}`; or use a teacher without `server`, or "
                "`support: renormalize`, which leaves the tail out."
            )

    def _settle(self, capture: CaptureArgs) -> None:
        """A store that is captured without a word on it is one that this loss can be had from."""
        if self.divergence != "forward_kl" or self.support in ("tail_bucket", "renormalize"):
            capture.settle(method="topk")
        if capture.method == "sampled":
            capture.settle(sampling_temperature=self.temperature)


class DistillConfig(BaseModel):
    """Mixed into Axolotl's own input schema: one more top-level key."""

    distill: DistillArgs | None = None

    @field_serializer("distill")
    def _as_written(self, block: DistillArgs | None) -> dict[str, Any] | None:
        """Axolotl dumps the config it has validated and hands that on. A key that was not written
        must not look as if it had been."""
        return None if block is None else block.model_dump(exclude_unset=True)


def is_store(entry: Any) -> bool:
    """Whether an entry of `datasets` is a teacher store."""
    return hasattr(entry, "get") and entry.get("type") in (STORE_TYPE, STORE_MODULE)


def parse_distill(block: Any, datasets: Sequence[Any] | None = None) -> DistillArgs:
    """The `distill:` block of a YAML as DistillArgs; `datasets` are those of the same YAML, which
    decide what `teacher` is where it is not said.

    Raises ConfigError with one line a fault: the full key, what was seen and what was expected.
    """
    block = {} if block is None else block
    args = parse_block(DistillArgs, block, "distill")
    settled = args.capture is not None or "teacher" in args.model_fields_set
    if settled or not datasets or any(map(is_store, datasets)):
        return args
    try:
        return parse_block(DistillArgs, {**block, "teacher": "text"}, "distill")
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nNo entry of `datasets` has `type: {STORE_TYPE}`, so that `distill.teacher` "
            "is text. Capture a store with `axolotl distill capture CONFIG.yml` and add it, or "
            "remove what only a store reads."
        ) from None
