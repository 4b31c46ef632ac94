"""What is still to be asked."""

from collections.abc import Container, Iterable

from axolotl_distill.generate.prompts import Prompt
from axolotl_distill.generate.request import Request


def plan(prompts: Iterable[Prompt], n: int, done: Container[str]) -> list[Request]:
    """`n` requests a prompt, less the ids that are done.

    A prompt's samples follow one another: servers keep its prefix cached, and a budget that runs
    out leaves whole groups.
    """
    asked = (Request(prompt, sample) for prompt in prompts for sample in range(n))
    return [request for request in asked if request.id not in done]
