"""Whether another request fits the budget."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.request import Request
from axolotl_distill.generate.tally import Tally, usd
from axolotl_distill.recipe.generate import GenerateArgs

# For a chat template's own words, and a default system prompt in it.
TEMPLATE_TOKENS = 256


class Meter:
    """Holds the budget of a folder over all its runs: it is never exceeded.

    A request is let go only when its worst case, and that of all others under way, still fits:
    `max_tokens`, and a token for every byte of the prompt. What it did not use comes back with
    the answer. So fewer and fewer requests are under way as the budget runs out. What a server
    bills for answers that never arrived is not counted: nobody here knows of it.
    """

    def __init__(self, args: GenerateArgs, spent: Tally):
        self._budget, self._price, self._most = args.budget, args.price, args.most_tokens
        self._examples_bytes = _bytes(args.examples)
        self._prompt, self._completion = spent.prompt_tokens, spent.completion_tokens
        self._under_way = self._under_way_prompt = 0
        self._changed = asyncio.Condition()
        self.stopped = False
        if self._budget and spent.without_usage:
            raise GenerateError(
                f"{spent.without_usage} completions in the folder came without `usage`, so what "
                "was spent is not known and no budget can be held. Remove `generate.budget`, or "
                "use a new `generate.output`."
            )

    async def reserve(self, requests: Sequence[Request]) -> bool:
        """True when `requests` may be asked. Waits while others under way may still make room.

        False, from then on always, when the budget is used up (`stopped`).
        """
        if self._budget is None:
            return True
        prompt = self._most_prompt_tokens(requests)
        async with self._changed:
            while not self.stopped:
                if self._fits(len(requests), prompt):
                    self._under_way += len(requests)
                    self._under_way_prompt += prompt
                    return True
                if not self._under_way:
                    self.stopped = True
                    self._changed.notify_all()
                else:
                    await self._changed.wait()
        return False

    async def settle(self, requests: Sequence[Request], rows: Sequence[dict[str, Any]]) -> None:
        """Count what `requests` used: `rows` are those that were answered.

        Raises GenerateError for a row without usage when there is a budget.
        """
        if self._budget is None:
            return
        async with self._changed:
            self._under_way -= len(requests)
            self._under_way_prompt -= self._most_prompt_tokens(requests)
            for row in rows:
                if row["usage"] is None:
                    raise GenerateError(
                        "The server gives no `usage` with its answers, so no budget can be held. "
                        "Remove `generate.budget`."
                    )
                self._prompt += row["usage"]["prompt_tokens"]
                self._completion += row["usage"]["completion_tokens"]
            self._changed.notify_all()

    def _fits(self, more: int, more_prompt: int) -> bool:
        prompt = self._prompt + self._under_way_prompt + more_prompt
        completion = self._completion + self._most * (self._under_way + more)
        tokens, dollars = self._budget.tokens, self._budget.usd
        return (tokens is None or prompt + completion <= tokens) and (
            dollars is None or usd(prompt, completion, self._price) <= dollars
        )

    def _most_prompt_tokens(self, requests: Sequence[Request]) -> int:
        return sum(
            _bytes(request.prompt.messages) + self._examples_bytes + TEMPLATE_TOKENS
            for request in requests
        )


def _bytes(messages: list[dict[str, Any]]) -> int:
    return len(json.dumps(messages, ensure_ascii=False).encode(errors="replace"))
