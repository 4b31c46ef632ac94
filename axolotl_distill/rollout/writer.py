"""Completions by a model's own `generate`."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.teachers.context import NO_CONTEXT, Context

SOON = 3.0


@dataclass(frozen=True)
class Completion:
    """Token ids, the stop token included where there is one.

    finished  whether it ended with a stop token; else it ran out of room
    """

    ids: list[int]
    finished: bool


class Author(Protocol):
    """Who writes the text of a step."""

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    def prepare(self, step: int) -> Mapping[str, float]:
        """Whatever is to be done before the text of optimizer step `step` is written; what is to be
        logged of it. All ranks call it, each for the same steps."""
        ...

    def write(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """One completion a prompt, in their order. Every prompt is shorter than `context`."""
        ...


@dataclass(frozen=True)
class Writer:
    """A model that writes.

    model      with `generate`; PEFT's wrapper or a causal LM
    as_author  entered by all processes, whatever each has to write: no dropout, a cache of keys
               and values, and whole weights, whatever the model does while it trains
    stop       ids that end a completion
    pad        any id; what is written is told from padding by its length and never by this
    context    tokens of prompt and completion together
    reads      whether an id means the same to student and teacher; a completion is cut off at one
               that does not
    shown      what it reads before every prompt, beside `context`
    shows      whether a bar moves while it writes, where that takes more than SOON seconds
    """

    model: Any
    as_author: Callable[[], AbstractContextManager[object]]
    args: OnPolicyArgs
    stop: tuple[int, ...]
    pad: int
    context: int
    reads: Callable[[int], bool]
    shows: bool = False
    shown: Context = NO_CONTEXT

    def prepare(self, step: int) -> Mapping[str, float]:
        """See Author; the model's weights are where it writes."""
        return {}

    def write(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """One completion a prompt, in their order. What is drawn follows from `seed`, the prompts
        and the weights; the generators of torch are left as they were.

        Every prompt is shorter than `context`. All processes call it, with no prompt too.
        """
        prompts = [self.shown.before(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: dict[int, Completion] = {}
        device = self.model.device
        forked = [] if device.type == "cpu" else [device]
        kind = "cuda" if device.type == "cpu" else device.type
        batches = range(0, len(order), self.args.batch_size)
        with (
            torch.random.fork_rng(devices=forked, device_type=kind),
            self.as_author(),
            self._bar(len(batches)) as bar,
        ):
            torch.manual_seed(seed)
            for number, at in enumerate(batches, 1):
                some = order[at : at + self.args.batch_size]
                written = self._batch([prompts[index] for index in some], bar)
                found |= zip(some, written, strict=True)
                # Most batches end before the last token that they may have.
                bar.update(number * self.args.max_new_tokens - bar.n)
        return [found[index] for index in range(len(prompts))]

    @torch.no_grad()
    def _batch(self, prompts: Sequence[Sequence[int]], bar: Any) -> list[Completion]:
        longest = max(map(len, prompts))
        room = [self.context + len(self.shown) - len(prompt) for prompt in prompts]
        ids = torch.full((len(prompts), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self.model.device
        with _without_habits(self.model):
            written = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._settings(min(self.args.max_new_tokens, max(room))),
                stopping_criteria=StoppingCriteriaList([_Moves(bar)]),
                # Its weights are whole, and the other processes may have nothing to write.
                synced_gpus=False,
            )
        new = written[:, longest:].tolist()
        rows = zip(new, room, strict=True)
        return [completed(row[:most], self.stop, self.reads) for row, most in rows]

    def _bar(self, batches: int) -> Any:
        return tqdm(
            total=batches * self.args.max_new_tokens,
            desc="rollout",
            unit=" tokens",
            leave=False,
            disable=not self.shows,
            delay=SOON,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def _settings(self, most: int) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True,
            temperature=self.args.temperature,
            top_p=self.args.top_p,
            top_k=self.args.top_k,
            max_new_tokens=most,
            eos_token_id=list(self.stop),
            pad_token_id=self.pad,
            use_cache=True,
        )


def completed(ids: list[int], stop: Sequence[int], reads: Callable[[int], bool]) -> Completion:
    """What of `ids` is a completion: all up to the first that ends it, or that student and teacher
    do not both read."""
    for at, token in enumerate(ids):
        if not reads(token):
            return Completion(ids[:at], False)
        if token in stop:
            return Completion(ids[: at + 1], True)
    return Completion(ids, False)


def stop_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion: those of the model's generation_config, and the tokenizer's.

    Raises ConfigError where there are none.
    """
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    found = [i for i in (*named, tokenizer.eos_token_id) if i is not None]
    if not found:
        raise ConfigError(
            "`distill.on_policy`: neither the student's generation_config nor its tokenizer names "
            "an end-of-text token, so that no completion would ever end. Set `special_tokens: "
            "{eos_token: …}`."
        )
    return tuple(dict.fromkeys(found))


@contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """`generate` takes what it is not told from the model's own generation_config, whose penalties,
    suppressed and forced tokens would make the text another than the student's own. PEFT's wrapper
    may have one, and hands it on to the model within, where it would stay."""
    within = model.get_base_model() if hasattr(model, "get_base_model") else model
    habits = [(m, m.__dict__.get("generation_config")) for m in dict.fromkeys((model, within))]
    for one, _ in habits:
        one.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for one, own in habits:
            if own is None:
                del one.generation_config
            else:
                one.generation_config = own


class _Moves(StoppingCriteria):
    """Stops nothing: moves a bar by one with every token of a batch. A streamer would wait for the
    device."""

    def __init__(self, bar: Any):
        self.bar = bar

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.bar.update(1)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
