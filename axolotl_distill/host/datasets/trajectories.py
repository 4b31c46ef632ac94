"""`type: axolotl_distill.trajectories`: Axolotl's `chat_template` for rows that think.

It takes every option of `chat_template`, and `thinking`: train (default), mask, drop, or a number,
the weight of a thinking token's loss. What it adds to Axolotl's tokens and masks:

* thinking is handed to the chat template in the form in which the template keeps it, inside the
  content or as `reasoning_content`; a template that keeps neither is refused
* whatever the model has to write before its thinking, such as `<think>`, is a label too, also where
  a template writes it into every turn; what the generation prompt brings along is none
* a turn whose thinking the template drops, and one cut off before its answer, is not trained
* thinking tokens are those that begin within the thinking's text: tags are none of them, so that
  a student whose thinking is masked or weighed down still learns to open and to close it
"""

from typing import Any

from axolotl.prompt_strategies.chat_template import ChatTemplateStrategy, StrategyLoader
from axolotl.utils.chat_templates.base import extract_chat_template_args
from axolotl.utils.logging import get_logger
from jinja2 import TemplateError

from axolotl_distill.errors import ConfigError, TrajectoryError
from axolotl_distill.host.datasets.thinking import (
    DROP,
    Turn,
    in_form,
    kept_form,
    parts,
    thinking_span,
    without_thinking,
)
from axolotl_distill.host.datasets.types import TRAJECTORIES_TYPE, thinking_of
from axolotl_distill.signal.batch import IGNORE, LOSS_WEIGHTS, POINTERS

LOG = get_logger(__name__)
MASK = "mask"
TURNS = "axolotl_distill.turns"


class TrajectoriesStrategy(ChatTemplateStrategy):
    """Axolotl's strategy with the turns put into the template's form, and thinking weighed.

    Rows get `teacher_pos` = -1 (there is no store) and, where thinking weighs neither 0 nor 1,
    `loss_weight`.
    """

    def __init__(self, prompter: Any, tokenizer: Any, *, thinking: float | str, **options: Any):
        super().__init__(prompter, tokenizer, **options)
        self.thinking = thinking
        self.key = prompter.template_thinking_key
        # Axolotl reads a message's thinking only where the template names it, or a mapping does.
        mappings = prompter.message_property_mappings
        prompter.message_property_mappings = {self.key: prompter.field_thinking, **mappings}
        self.form = None if thinking == DROP else kept_form(self._probe, self.key)
        self._thinks: set[bool] = set()
        self._rows = 0
        self._said: set[str] = set()

    def tokenize_prompt(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """As Axolotl's; says so where the first rows have no thinking to mask, weigh or drop."""
        tokenized = super().tokenize_prompt(prompt)
        if self.thinking != 1.0 and True not in self._thinks:
            value = MASK if self.thinking == 0.0 else self.thinking
            self._warn_once(
                "nothing to weigh",
                f"none of the first {self._rows} rows has any thinking, and `thinking: "
                f"{value}` changes nothing there. Is it in `{self.prompter.field_thinking}` or at "
                "the start of the content, in tags that are known?",
            )
        return tokenized

    def get_conversation_thread(self, prompt: dict[str, Any]) -> list[Turn]:
        if TURNS in prompt:
            return prompt[TURNS]
        return [self._turn(prompt, turn) for turn in super().get_conversation_thread(prompt)]

    def _turn(self, prompt: dict[str, Any], turn: Turn) -> Turn:
        thinking, answer = parts(turn, self.key)
        if turn["role"] == "assistant" and self._is_trained(turn):
            self._thinks.add(thinking is not None)
        if thinking and not answer and not turn.get("tool_calls"):
            self._warn_once(
                "thinking without an answer",
                f"{_name(prompt)} was cut off before its answer; such turns are not trained. "
                "`axolotl distill filter` takes them out.",
            )
            turn = {**turn, "training": False}
        if self.thinking == DROP:
            return without_thinking(turn, self.key)
        # Offsets that choose parts of a content hold for that content only.
        return turn if "training_detail" in turn else in_form(turn, self.form, self.key)

    def _tokenize_single_prompt(self, prompt: dict[str, Any]) -> dict[str, list]:
        turns = self.get_conversation_thread(prompt)
        tools = self._get_tools(prompt)
        self._rows += 1
        spans = {}
        text = self._render(turns, tools)
        self._check_shown(prompt, tools, text)
        if self.thinking != DROP:
            spans = self._spans(prompt, turns, tools, text)
        row = super()._tokenize_single_prompt({**prompt, TURNS: turns})
        row[POINTERS.name] = POINTERS.filled(len(row["input_ids"])).tolist()
        weights = [1.0] * len(row["input_ids"])
        if spans:
            starts = self._token_starts(prompt, text, row["input_ids"])
            for index, span in spans.items():
                before = turns[:index]
                prompted = before and self._render(before, tools, add_generation_prompt=True)
                given = len(prompted) if prompted and text.startswith(prompted) else len(text)
                self._label(row, weights, starts, span, given)
        if self.thinking not in (0.0, 1.0, DROP):
            row[LOSS_WEIGHTS.name] = weights
        return row

    def _check_shown(self, prompt: dict[str, Any], tools: Any, text: str) -> None:
        """Raises TrajectoryError where the template leaves tools, or calls of them, out."""
        messages = self._get_messages(prompt)
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        for what, functions in (("a call of", calls), ("the tool", tools or ())):
            for function in functions:
                name = (function.get("function") or function).get("name")
                if name and name not in text:
                    raise TrajectoryError(
                        f"{_name(prompt)}: the chat template does not show {what} `{name}`, and "
                        "the student would learn from half of the conversation. Use a "
                        "`chat_template` that knows tools (qwen3, llama3, …), or take the rows out."
                    )

    def _spans(
        self, prompt: dict[str, Any], turns: list[Turn], tools: Any, text: str
    ) -> dict[int, tuple[int, int]]:
        """Where the trained turns think; turns that cannot be trained are marked so, in place."""
        spans = {}
        last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant" or not self._is_trained(turn):
                continue
            thinking, answer = parts(turn, self.key)
            if len(self._thinks) == 2:
                self._warn_once(
                    "rows with and without thinking",
                    f"at {_name(prompt)}, rows of the other kind came before. The student learns "
                    "both ways to answer; if that is not meant, filter one out.",
                )
            if thinking is None:
                if answer not in text:
                    raise TrajectoryError(
                        f"{_name(prompt)}: the chat template changes an answer, which names tags "
                        f"of thinking: {answer:.200}. Use another `chat_template`, or take the row "
                        "out."
                    )
                continue
            span = thinking_span(lambda ts: self._render(ts, tools), text, turns, index, self.key)
            if span is not None:
                spans[index] = span
            elif index == last:
                raise TrajectoryError(
                    f"{_name(prompt)}: the chat template does not write the thinking of its last "
                    "turn once and as it is. Use another `chat_template`, take the row out, or set "
                    "`thinking: drop`."
                )
            else:
                turn["training"] = False
                self._warn_once(
                    "earlier turns",
                    f"{_name(prompt)}: the chat template drops the thinking of turns before the "
                    "last; such turns stay in the context and are not trained. To train them, use "
                    "a `chat_template` that keeps it, or split the conversation.",
                )
        return spans

    def _label(
        self,
        row: dict[str, list],
        weights: list[float],
        starts: list[int],
        span: tuple[int, int],
        given: int,
    ) -> None:
        """Weigh or mask the tokens that start within `span`; make those between `given`, the end
        of the generation prompt, and the span labels, too. Nothing where the turn is no label."""
        begin, end = span
        inside = [i for i, start in enumerate(starts) if begin <= start < end]
        if not inside or row["labels"][inside[0]] == IGNORE:
            return
        for i in range(inside[0]):
            if starts[i] >= given:
                row["labels"][i] = row["input_ids"][i]
        assert not isinstance(self.thinking, str)  # rows lose it before they are labelled
        for i in inside:
            weights[i] = self.thinking
            if self.thinking == 0.0:
                row["labels"][i] = IGNORE

    def _token_starts(self, prompt: dict[str, Any], text: str, input_ids: list[int]) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(encoded["input_ids"]) != list(input_ids):
            raise TrajectoryError(
                f"{_name(prompt)}: its tokens are not those of its rendered text, so its thinking "
                "cannot be found. Use Axolotl's `type: chat_template` for this dataset."
            )
        return [start for start, _ in encoded["offset_mapping"]]

    def _is_trained(self, turn: Turn) -> bool:
        if "training" in turn:
            return bool(turn["training"])
        return bool(self.train_on_inputs) or turn["role"] in self.roles_to_train

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            LOG.warning(f"axolotl-distill: {about}: {message}")

    def _render(self, turns: list[Turn], tools: Any = None, **options: Any) -> str:
        return self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            tools=tools,
            chat_template=self.prompter.chat_template,
            **{**self.prompter.chat_template_kwargs, **options},
        )

    def _probe(self, turns: list[Turn]) -> str:
        try:
            return self._render(turns)
        except TemplateError:
            return ""


def _name(prompt: dict[str, Any]) -> str:
    """How a user finds the row again."""
    for key in ("id", "prompt_id"):
        if prompt.get(key) is not None:
            return f"row {prompt[key]}"
    return f"the row that begins {str(next(iter(prompt.values())))[:80]!r}"


class TrajectoriesLoader(StrategyLoader):
    """Axolotl's entry point for a dataset type.

    Raises ConfigError when the chat template cannot keep thinking.
    """

    def _get_strategy_cls(self, cfg: Any) -> type:
        return TrajectoriesStrategy

    def _get_strategy_params(self, cfg: Any, ds_cfg: dict[str, Any]) -> dict[str, Any]:
        return {**super()._get_strategy_params(cfg, ds_cfg), "thinking": thinking_of(ds_cfg)}

    def __call__(self, tokenizer: Any, cfg: Any, ds_cfg: Any = None, processor: Any = None) -> Any:
        if cfg.tokenizer_use_mistral_common or not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"`type: {TRAJECTORIES_TYPE}` finds thinking by the place of each token in the "
                f"text, which {type(tokenizer).__name__} does not tell. Use a fast tokenizer, or "
                "Axolotl's `type: chat_template`."
            )
        strategy = super().__call__(tokenizer, cfg, ds_cfg=ds_cfg, processor=processor)
        if strategy.thinking == DROP:
            return strategy
        if strategy.form is None:
            choice, _ = extract_chat_template_args(cfg, ds_cfg)
            raise ConfigError(
                f"The chat template `{getattr(choice, 'value', choice)}` of "
                f"{tokenizer.name_or_path} drops what the assistant thinks: a probe that was "
                f"rendered with it lost its thinking both as <think> text and as `{strategy.key}`, "
                f"and the student of {ds_cfg['path']} would learn to answer without thinking. Use "
                "a template that keeps it (`chat_template: chatml`, or your own as "
                "`chat_template_jinja`), or set `thinking: drop` on the dataset to train on the "
                "answers alone."
            )
        where = f"as `{strategy.key}`" if strategy.form == "apart" else "as <think> text"
        LOG.info(
            f"axolotl-distill: {ds_cfg['path']}: the chat template keeps thinking that it is given "
            f"{where}; rows that hold it otherwise are converted"
        )
        return strategy


load = TrajectoriesLoader()
