"""Completions from a Hugging Face model in this process."""

import asyncio
import inspect
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, GenerationMixin

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, GenerateError
from axolotl_distill.generate.answer import tags_of
from axolotl_distill.generate.prompts import with_examples
from axolotl_distill.generate.request import EMPTY, Completion, Refused, Request
from axolotl_distill.generate.sampling import Draws, sampled
from axolotl_distill.teachers.load import CANNOT_LOAD, explain, input_device, load_causal_lm
from axolotl_distill.trajectories import Row, split
from axolotl_distill.trajectories.messages import for_template

# What decides where a completion ends and what comes back: one row a request, its own draws, ended
# by the model's end-of-text token or by max_tokens.
FIXED = {
    *("inputs", "max_new_tokens", "max_length", "max_time"),
    *("num_beams", "num_return_sequences", "do_sample", "stop_strings", "stopping_criteria"),
    *("eos_token_id", "pad_token_id", "return_dict_in_generate", "output_scores", "output_logits"),
    *("custom_generate", "generation_config", "streamer", "assistant_model", "tokenizer"),
}
# Requests sorted by length at a time, in batches: little padding, bounded memory.
WINDOW_BATCHES = 32


class _Encoded(NamedTuple):
    """A prompt's tokens, and whether they end within the thinking."""

    ids: list[int]
    opened: bool


class ModelBackend:
    """Batches of `batch_size`, padded on the left, through transformers' `generate`.

    What is drawn for a request follows from its seed alone, not from the batch it is in. The
    model's own generation_config holds for whatever the recipe leaves open; transformers' default
    of top_k 50 does not.
    """

    concurrency = 1

    def __init__(self, teacher: TeacherArgs, args: GenerateArgs):
        assert args.max_tokens is not None, "the recipe sees to it"
        self.teacher = teacher.model
        self._args, self._max_tokens = args, args.max_tokens
        extra = dict(args.extra)
        self._template = extra.pop("chat_template_kwargs", {})
        self._tags = tags_of(args)
        _check_extra(extra)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                teacher.model, padding_side="left", **teacher.origin
            )
            if not self._tokenizer.chat_template:
                raise GenerateError(
                    f"The tokenizer of `{teacher.model}` has no chat template, so there is no "
                    "telling how to ask it. Use an instruction-tuned model, or serve it with a "
                    "template."
                )
            self._model: Any = load_causal_lm(teacher)
        except GenerateError:
            raise
        except CANNOT_LOAD as error:
            raise GenerateError(
                f"The teacher `{teacher.model}` (`teacher.model`) cannot be loaded: "
                f"{explain(error)}"
            ) from error
        text_config = self._model.config.get_text_config()
        self._positions = getattr(text_config, "max_position_embeddings", None)
        self._eos = self._eos_ids()
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(self._eos[0])
        self._settings = self._generation_settings(extra)
        self._stop = threading.Event()

    def batches(self, todo: Iterable[Request]) -> Iterator[list[Request]]:
        todo = iter(todo)
        size = self._args.batch_size
        while window := list(islice(todo, WINDOW_BATCHES * size)):
            lengths = {request.id: self._length(request) for request in window}
            window.sort(key=lambda request: lengths[request.id])
            yield from (window[at : at + size] for at in range(0, len(window), size))

    async def complete(self, batch: list[Request]) -> list[Completion | Refused]:
        try:
            return await asyncio.to_thread(self._complete, batch)
        except asyncio.CancelledError:
            self._stop.set()
            raise

    async def close(self) -> None:
        self._stop.set()

    def _complete(self, batch: list[Request]) -> list[Completion | Refused]:
        encoded = [self._encode(request) for request in batch]
        asked = [
            (request, prompt)
            for request, prompt in zip(batch, encoded, strict=True)
            if not isinstance(prompt, Refused)
        ]
        written = iter(self._generate(asked) if asked else [])
        return [p if isinstance(p, Refused) else _unless_empty(next(written)) for p in encoded]

    def _length(self, request: Request) -> int:
        prompt = self._encode(request)
        return 0 if isinstance(prompt, Refused) else len(prompt.ids)

    def _encode(self, request: Request) -> _Encoded | Refused:
        messages = with_examples(request.prompt.messages, self._args.examples)
        tools = request.prompt.tools
        try:
            text = self._render(messages, tools)
            if tools and text == self._render(messages, None):
                return Refused(
                    "the row has `tools`, and the teacher's chat template does not show them to "
                    "the model. Use a teacher with a template for tools, or remove the column"
                )
        except (TemplateError, TypeError, AttributeError) as error:
            return Refused(f"the chat template refuses the messages: {error}")
        # The template has written the special tokens already.
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        most = self._max_tokens
        if self._positions is None or len(ids) + most <= self._positions:
            opened = self._args.thinking_opened
            if opened is None:
                opened = text.rstrip().endswith(tuple(pair.open for pair in self._tags))
            return _Encoded(ids, opened)
        return Refused(
            f"the prompt's {len(ids)} tokens and `max_tokens: {most}` exceed the model's "
            f"{self._positions} positions"
        )

    def _render(self, messages: list[Row], tools: list[Row] | None) -> str:
        return self._tokenizer.apply_chat_template(
            for_template(messages),
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            **self._template,
        )

    @torch.inference_mode()
    def _generate(self, asked: list[tuple[Request, _Encoded]]) -> list[Completion]:
        ids = [prompt.ids for _, prompt in asked]
        inputs = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        inputs = inputs.to(input_device(self._model))
        seeds = [request.seed(self._args.seed) for request, _ in asked]
        draws = Draws(seeds, self._max_tokens, self._args.logprobs)
        ids_BS = self._model.generate(
            **inputs,
            **self._settings,
            custom_generate=sampled(draws),
            stopping_criteria=[lambda ids, scores, **_: self._stopped(ids)],
        )
        new_BT = ids_BS[:, inputs["input_ids"].shape[1] :].tolist()
        return [
            self._completion(prompt, new, draws.logprobs(row))
            for row, ((_, prompt), new) in enumerate(zip(asked, new_BT, strict=True))
        ]

    def _completion(
        self, prompt: _Encoded, new: list[int], logprobs: list[Row] | None
    ) -> Completion:
        end = next((at for at, token in enumerate(new) if token in self._eos), None)
        written = new if end is None else new[: end + 1]
        thinking, answer, form = split(self._text(new[:end]), tags=self._tags, opened=prompt.opened)
        return Completion(
            content=answer,
            reasoning_content=thinking,
            thinking_form=form,
            finish_reason="length" if end is None else "stop",
            usage={"prompt_tokens": len(prompt.ids), "completion_tokens": len(written)},
            logprobs=None if logprobs is None else logprobs[: len(written)],
        )

    def _text(self, ids: list[int]) -> str:
        """Without special tokens, unless they are tags around the thinking or the answer."""
        text, whole = (
            self._tokenizer.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            for skip in (True, False)
        )
        tags = {tag for pair in self._tags for tag in (*pair[:2], *(pair.answer or ()))}
        return whole if any(tag in whole and tag not in text for tag in tags) else text

    def _stopped(self, ids_BS: Tensor) -> Tensor:
        return torch.full((len(ids_BS),), self._stop.is_set(), device=ids_BS.device)

    def _eos_ids(self) -> list[int]:
        named = self._model.generation_config.eos_token_id
        named = named if isinstance(named, list) else [named]
        found = [i for i in (*named, self._tokenizer.eos_token_id) if i is not None]
        if not found:
            raise GenerateError(
                "Neither the teacher's generation_config nor its tokenizer names an end-of-text "
                "token, so its completions would never end. Set eos_token_id in one of them."
            )
        return list(dict.fromkeys(found))

    def _generation_settings(self, extra: dict[str, Any]) -> dict[str, Any]:
        own = self._model.generation_config
        temperature = self._args.temperature
        if temperature is None:
            temperature = own.temperature if own.temperature is not None else 1.0
        settings = {
            "max_new_tokens": self._args.max_tokens,
            "eos_token_id": self._eos,
            "pad_token_id": self._tokenizer.pad_token_id,
            "do_sample": temperature > 0,
        }
        if temperature > 0:
            settings |= {"temperature": temperature, "top_k": own.top_k or 0}
            if self._args.top_p is not None:
                settings["top_p"] = self._args.top_p
        return settings | extra


def _unless_empty(completion: Completion) -> Completion | Refused:
    if not completion.is_empty:
        return completion
    return Refused(EMPTY.format(reason=completion.finish_reason), completion.usage)


def _check_extra(extra: dict[str, Any]) -> None:
    known = {*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters}
    for keys, why in (
        (extra.keys() & FIXED, "which this package sets itself or cannot follow"),
        (extra.keys() - known, "which transformers' `generate` does not take"),
    ):
        if keys:
            names = ", ".join(f"`{key}`" for key in sorted(keys))
            raise ConfigError(f"`generate.extra` has {names}, {why}. Remove it.")
