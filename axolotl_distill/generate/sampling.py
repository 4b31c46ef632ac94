"""Drawing tokens so that a request's draws are its own, and keeping what they were drawn from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from axolotl_distill.generate.answer import LEAST_LOGPROB


class Draws:
    """One uniform number a row and step, from a generator of the row's own.

    seeds   None: from the global generator's state
    top     keep the `top` most probable tokens of every step: log-probabilities in nats of the
            model's own distribution, before temperature, top-p and penalties; None keeps nothing
    """

    def __init__(self, seeds: Sequence[int | None], steps: int, top: int | None):
        self._uniform_TB = torch.stack([_uniform(seed, steps) for seed in seeds], dim=1)
        self._top = top
        self._step = 0
        # [B, top] ids and log-probabilities, [B] chosen ids and their log-probabilities, a step.
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._raw_BV: Tensor | None = None

    def see(self, logits_BV: Tensor) -> None:
        """Take the model's own logits of a step."""
        if self._top is not None:
            self._raw_BV = logits_BV.float().log_softmax(-1)

    def choose(self, scores_BV: Tensor, greedy: bool) -> Tensor:
        """int64 [B]: a token a row, drawn from softmax(scores) by inverting its distribution."""
        if greedy:
            chosen_B = scores_BV.argmax(-1)
        else:
            # In double: a vocabulary's worth of small summands must not lose the rare ones.
            cdf_BV = scores_BV.double().softmax(-1).cumsum(-1)
            cdf_BV /= cdf_BV[:, -1:].clone()
            uniform_B = self._uniform_TB[self._step].to(cdf_BV.device)
            chosen_B = torch.searchsorted(cdf_BV, uniform_B[:, None], right=True).squeeze(1)
        self._step += 1
        if self._raw_BV is not None and self._top is not None:
            top = self._raw_BV.topk(self._top, dim=-1)
            own_B = self._raw_BV.gather(1, chosen_B[:, None]).squeeze(1)
            self._kept.append((top.indices.cpu(), top.values.cpu(), chosen_B.cpu(), own_B.cpu()))
            self._raw_BV = None
        return chosen_B

    def logprobs(self, row: int) -> list[dict[str, Any]] | None:
        """The row's steps in the layout of vLLM's `logprobs.content`, ids as "token_id:7"."""
        if self._top is None:
            return None
        return [
            {
                **_entry(chosen[row], own[row]),
                "top_logprobs": [
                    _entry(token, value) for token, value in zip(ids[row], values[row], strict=True)
                ],
            }
            for ids, values, chosen, own in self._kept
        ]


def sampled(draws: Draws) -> Callable[..., Any]:
    """A decoding loop for `generate(custom_generate=…)`: transformers' own, drawing from `draws`.

    Its greedy loop takes the most probable token. So the last processor leaves it one token.
    """

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: Any,
        **others: Any,
    ) -> Any:
        chain = [_See(draws), *logits_processor, _Choose(draws, not generation_config.do_sample)]
        generation_config.do_sample = False
        return type(model)._sample(
            model,
            input_ids,
            logits_processor=LogitsProcessorList(chain),
            generation_config=generation_config,
            **others,
        )

    return decode


class _See(LogitsProcessor):
    def __init__(self, draws: Draws):
        self._draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._draws.see(scores)
        return scores


class _Choose(LogitsProcessor):
    def __init__(self, draws: Draws, greedy: bool):
        self._draws, self._greedy = draws, greedy

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B = self._draws.choose(scores, self._greedy)
        only = torch.full_like(scores, float("-inf"))
        return only.scatter(1, chosen_B[:, None], 0.0)


def _uniform(seed: int | None, steps: int) -> Tensor:
    """float64 [steps] on the CPU, so that the device does not change the draws."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return torch.rand(steps, dtype=torch.float64, generator=generator)


def _entry(token: Tensor, logprob: Tensor) -> dict[str, Any]:
    value = max(round(logprob.item(), 6), LEAST_LOGPROB)
    return {"token": f"token_id:{token.item()}", "logprob": value, "bytes": None}
