"""Whether another request fits the budget."""

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.tally import Tally, usd
from axolotl_distill.trajectories import Row, Usage

# For a chat template's own words, and a default system prompt in it.
TEMPLATE_TOKENS = 256


class Allowance(Protocol):
    """Says how much may be asked: a Meter, or one elsewhere."""

    async def reserve(self, requests: Sequence[Request]) -> int: ...

    async def settle(
        self,
        requests: Sequence[Request],
        answered: Sequence[Usage | None],
        refused: Sequence[Usage | None],
    ) -> None: ...


class Meter:
    """Holds the budget of a folder over all its runs: it is never exceeded.

    A request is let go only when its worst case, and that of all others under way, still fits:
    `max_tokens`, and a token for every byte of the prompt. What it did not use comes back with
    the answer. So fewer and fewer requests are under way as the budget runs out. What a server
    bills for answers that never arrived, or that came broken and were asked for again, is not
    counted.
    """

    def __init__(self, args: GenerateArgs, spent: Tally):
        self._budget, self._price = args.budget, args.price
        self._most = args.most_tokens or 0  # with a budget there is a limit
        # `extra` may hold tools, which a chat template writes into the prompt.
        self._common_bytes = _bytes(args.examples) + _bytes(args.extra)
        self._prompt, self._completion = spent.prompt_tokens, spent.completion_tokens
        self._under_way = self._under_way_prompt = 0
        self._changed = asyncio.Condition()
        self.stopped = self._halted = False
        if self._budget and spent.without_usage:
            raise GenerateError(
                f"{spent.without_usage} completions in the folder came without `usage`, so what "
                "was spent is not known and no budget can be held. Remove `generate.budget`, or "
                "use a new `generate.output`."
            )

    async def reserve(self, requests: Sequence[Request]) -> int:
        """How many of `requests`, from the first, may be asked: all, unless the budget is short.

        Waits while others under way may still make room. 0, from then on always, when the budget
        is used up (`stopped`), or after `halt`.
        """
        if self._budget is None:
            return 0 if self._halted else len(requests)
        async with self._changed:
            while not (self.stopped or self._halted):
                fits = self._fitting(requests)
                if fits == len(requests) or (fits and not self._under_way):
                    self._under_way += fits
                    self._under_way_prompt += self._most_prompt_tokens(requests[:fits])
                    return fits
                if not self._under_way:
                    self.stopped = True
                    self._changed.notify_all()
                else:
                    await self._changed.wait()
        return 0

    async def halt(self) -> None:
        """Nothing more may be asked, whatever the budget: something failed elsewhere."""
        async with self._changed:
            self._halted = True
            self._changed.notify_all()

    async def settle(
        self,
        requests: Sequence[Request],
        answered: Sequence[Usage | None],
        refused: Sequence[Usage | None] = (),
    ) -> None:
        """Count what `requests` used: those that were answered, and the others, of which some cost
        something too.

        Raises GenerateError for an answer without usage when there is a budget.
        """
        if self._budget is None:
            return
        async with self._changed:
            self._under_way -= len(requests)
            self._under_way_prompt -= self._most_prompt_tokens(requests)
            if None in answered:
                raise GenerateError(
                    "The server gives no `usage` with its answers, so no budget can be held. "
                    "Remove `generate.budget`."
                )
            for usage in filter(None, [*answered, *refused]):
                self._prompt += usage["prompt_tokens"]
                self._completion += usage["completion_tokens"]
            self._changed.notify_all()

    def _fitting(self, requests: Sequence[Request]) -> int:
        prompt = self._prompt + self._under_way_prompt
        completion = self._completion + self._most * self._under_way
        assert self._budget is not None
        tokens, dollars = self._budget.tokens, self._budget.usd
        for fits, request in enumerate(requests):
            prompt += self._most_prompt_tokens([request])
            completion += self._most
            if (tokens is not None and prompt + completion > tokens) or (
                dollars is not None
                and self._price is not None
                and usd(prompt, completion, self._price) > dollars
            ):
                return fits
        return len(requests)

    def _most_prompt_tokens(self, requests: Sequence[Request]) -> int:
        return sum(
            _bytes([*request.prompt.messages, *(request.prompt.tools or [])])
            + self._common_bytes
            + TEMPLATE_TOKENS
            for request in requests
        )


def _bytes(value: list[Row] | Row) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
