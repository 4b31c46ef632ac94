"""A reward model scores every row: a sequence classifier here, or behind vLLM or SGLang."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from axolotl_distill.config.block import PathText, ReadBy
from axolotl_distill.config.server import ServerArgs
from axolotl_distill.config.teacher import ModelArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.ask import Question, ask
from axolotl_distill.filter.conversation import conversation
from axolotl_distill.filter.step import ALONE, Around, Candidate, Step, Verdict, Where, registered
from axolotl_distill.filter.tokens import load_tokenizer, render

TOO_LONG = "too long for the reward model"


class RewardArgs(ModelArgs):
    """A reward model: a sequence classifier in this process, or behind vLLM or SGLang.

    With one output the score is that output. With more, it is the probability of `label`.
    """

    tokenizer: PathText | None = Field(
        None, description="Its tokenizer, whose chat template is applied; default: `model`."
    )
    of: Literal["answer", "all"] = Field(
        "answer", description="What it reads: the answer alone, or the thinking too."
    )
    label: int | None = Field(None, ge=0, description="Which output, where there are several.")
    min_score: float | None = Field(None, description="Drop below it; default: only score.")
    max_tokens: int = Field(8192, ge=1, description="Longer rows are dropped, not cut.")
    batch_size: Annotated[int, ReadBy("server", None)] = Field(
        8, ge=1, description="Rows in one forward pass."
    )
    trust_remote_code: bool = Field(
        False, description="Run code that the checkpoint or its tokenizer brings."
    )

    @field_validator("server")
    @classmethod
    def _scores(cls, value: ServerArgs | None) -> ServerArgs | None:
        if value is not None and value.engine == "openai":
            raise ValueError(
                "the OpenAI API has no endpoint for reward models: set `engine: vllm` or "
                "`engine: sglang`, or use `judge`."
            )
        return value


@registered
class RewardStep(Step[RewardArgs]):
    """Scores by a reward model.

    Reasons: "reward below …", "too long for the reward model", "the reward is not a finite number",
    "the server refused the request".
    """

    kind = "reward"
    Args = RewardArgs
    remedy = (
        "A lower `min_score`, or no `min_score` and `best_of_n: {by: reward}`, keeps the best of "
        "what there is."
    )
    scores = True

    def __init__(self, args: RewardArgs, around: Around = ALONE):
        super().__init__(args, around)
        self.reader = _Reader(args)
        self._model = (
            _Here(args, self.reader)
            if args.server is None
            else _Served(args, args.server, self.reader, around)
        )

    @classmethod
    def where(cls, args: RewardArgs) -> Where:
        return Where.ON_GPU if args.server is None else Where.HERE

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        return self._model.judge(rows)


def score_of(outputs: list[float], args: RewardArgs) -> float:
    """The one output itself; of several, the probability of `label`. Outputs are raw, not probs."""
    if len(outputs) == 1:
        return outputs[0]
    if args.label is None or args.label >= len(outputs):
        raise ConfigError(
            f"The reward model {args.model} has {len(outputs)} outputs and `reward.label` is "
            f"{args.label}. Say which of 0 to {len(outputs) - 1} is the good one."
        )
    highest = max(outputs)
    weights = [math.exp(output - highest) for output in outputs]
    return weights[args.label] / sum(weights)


def verdict_of(outputs: list[float], args: RewardArgs) -> Verdict:
    score = score_of(outputs, args)
    if not math.isfinite(score):  # NaN is below no limit, and has no place among other scores
        return Verdict(False, "the reward is not a finite number", detail=f"outputs: {outputs}")
    if args.min_score is not None and score < args.min_score:
        return Verdict(False, f"reward below {args.min_score:g}", score=score)
    return Verdict(True, score=score)


class _Reader:
    """Rows as the reward model reads them: its own chat template, its own token ids."""

    def __init__(self, args: RewardArgs):
        self.args = args
        self.tokenizer = load_tokenizer(
            args.tokenizer or args.model, "reward.tokenizer", args.trust_remote_code
        )
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                f"`reward.tokenizer: {args.tokenizer or args.model}` has no chat template, so it "
                "is not known how the model wants to see prompt and answer. Name a tokenizer "
                "that has the template."
            )

    def ids(self, row: Candidate) -> list[int]:
        messages = conversation(row, "drop" if self.args.of == "answer" else "tags")
        return render(self.tokenizer, messages, row, tokenize=True, return_dict=False)


class _Here:
    """A Hugging Face sequence classifier in this process."""

    def __init__(self, args: RewardArgs, reader: _Reader):
        from transformers import AutoConfig

        self.args, self.reader = args, reader
        try:
            config = AutoConfig.from_pretrained(args.model, **args.origin)
        except (OSError, ValueError) as error:
            raise ConfigError(f"`reward.model: {args.model}` cannot be loaded: {error}") from error
        score_of([0.0] * config.num_labels, args)
        self._model: Any = None

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        if self._model is None:
            self._model = self._load()
        rows = iter(rows)
        while batch := [self.reader.ids(row) for row in islice(rows, self.args.batch_size)]:
            fitting = [ids for ids in batch if len(ids) <= self.args.max_tokens]
            outputs = iter(self._outputs(fitting) if fitting else [])
            for ids in batch:
                if len(ids) > self.args.max_tokens:
                    yield Verdict(False, TOO_LONG, detail=f"{len(ids)} tokens")
                else:
                    yield verdict_of(next(outputs), self.args)

    def _outputs(self, batch: list[list[int]]) -> list[list[float]]:
        import torch

        from axolotl_distill.teachers.load import input_device

        padded = self.reader.tokenizer.pad(
            {"input_ids": batch}, padding_side="right", return_tensors="pt"
        ).to(input_device(self._model))
        with torch.inference_mode():
            return self._model(**padded).logits.float().tolist()

    def _load(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        from axolotl_distill.teachers.load import loading_options

        args = self.args
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            args.model, **loading_options(args), output_loading_info=True
        )
        if loading["missing_keys"]:
            raise ConfigError(
                f"`reward.model: {args.model}` is no trained sequence classifier: it lacks "
                f"{', '.join(sorted(loading['missing_keys']))}, and random scores are worth "
                "nothing. Name a reward model."
            )
        # With a batch, the classifier looks for the last token that is no padding.
        tokenizer = self.reader.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return model.eval()


class _Served:
    """`POST /classify` of vLLM or SGLang, with token ids, so that both see the very same input.

    vLLM is asked for the outputs before its activation. SGLang's `/v1/classify` takes a softmax
    over them, which makes a single output always 1; its own `/classify` gives them as they are.
    """

    def __init__(self, args: RewardArgs, server: ServerArgs, reader: _Reader, around: Around):
        self.args, self.server, self.reader, self.around = args, server, reader, around
        self.vllm = server.engine == "vllm"

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        asked: deque[int] = deque()  # lengths of rows that wait for their verdict, in order
        read = _vllm_outputs if self.vllm else _sglang_outputs
        questions = self._questions(rows, asked)
        for reply in ask(self.server, self.around.answers, questions, read, at_root=True):
            yield from self._too_long(asked)
            asked.popleft()
            if reply.refused:
                yield Verdict(False, "the server refused the request", detail=reply.refused)
            else:
                yield verdict_of(reply.value, self.args)
        yield from self._too_long(asked)

    def _questions(self, rows: Iterable[Candidate], asked: deque[int]) -> Iterator[Question]:
        for row in rows:
            ids = self.reader.ids(row)
            asked.append(len(ids))
            if len(ids) <= self.args.max_tokens:
                yield Question(self.args.model, row["id"], "/classify", self._body(ids))

    def _too_long(self, asked: deque[int]) -> Iterator[Verdict]:
        while asked and asked[0] > self.args.max_tokens:
            yield Verdict(False, TOO_LONG, detail=f"{asked.popleft()} tokens")

    def _body(self, ids: list[int]) -> dict[str, Any]:
        if self.vllm:
            return {"model": self.args.model, "input": [ids], "use_activation": False}
        return {"input_ids": ids}


def _vllm_outputs(answer: dict[str, Any]) -> list[float]:
    (only,) = answer["data"]
    return [float(value) for value in only["probs"]]


def _sglang_outputs(answer: dict[str, Any]) -> list[float]:
    return [float(value) for value in answer["embedding"]]
