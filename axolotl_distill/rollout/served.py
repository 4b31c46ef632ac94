"""Completions by a server that holds the student."""

import asyncio
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.errors import DistillError
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.rollout.writer import SOON, Completion, completed


@dataclass
class ServedWriter:
    """An Author (writer.py) behind a vLLM server.

    sync     before the text of a step, on all ranks: the name of the adapter to ask for, and what
             is to be logged of it; see Sync
    stop     ids that end a completion
    context  tokens of prompt and completion together
    reads    whether an id means the same to student and teacher
    shows    whether a bar moves while it writes
    """

    vllm: VLLM
    args: OnPolicyArgs
    stop: tuple[int, ...]
    context: int
    reads: Callable[[int], bool]
    sync: Callable[[int], tuple[str, Mapping[str, float]]]
    shows: bool = False
    name: str = ""

    def prepare(self, step: int) -> Mapping[str, float]:
        """Raises ServerError where the server has not the student."""
        self.name, found = self.sync(step)
        return found

    def write(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        """See Author. What is drawn follows from `seed`, the prompts and the weights, as far as the
        server's sums do not depend on what else it is asked.

        Raises ServerError, which names the prompt, where the server does not answer usably however
        often it is asked; nothing is learnt from then.
        """
        return self.vllm.run(self._all(prompts, seed))

    async def _all(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Completion]:
        with tqdm(
            total=len(prompts),
            desc="rollout",
            unit=" completions",
            leave=False,
            disable=not self.shows,
            delay=SOON,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        ) as bar:

            async def one(number: int, prompt: Sequence[int]) -> Completion:
                most = min(self.args.max_new_tokens, self.context - len(prompt))
                drawn = _seed(seed, number)
                try:
                    written = await self.vllm.write(
                        self.name, prompt, most, self.stop, drawn, self.args
                    )
                except DistillError as error:
                    raise type(error)(
                        f"Rollout, prompt {number} ({len(prompt)} tokens): {error}"
                    ) from error
                bar.update(1)
                return completed(written.ids, self.stop, self.reads)

            tasks = [asyncio.create_task(one(*item)) for item in enumerate(prompts)]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()


def _seed(seed: int, number: int) -> int:
    """63 bits; each prompt's own, so that the same prompt twice is two texts."""
    named = f"{seed} {number}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 1
