"""Log-probabilities that came with something else, and how each source lays them out.

All of them describe a token in the place of that token, so every layout becomes an Example: token
ids, and for every token what was known before it came.

    trajectories         what `axolotl distill generate` writes with `logprobs`
    openai               chat completions with `logprobs`, beside the request's `messages`
    vllm                 vLLM's completions and chat completions: `prompt_logprobs`, `logprobs`
    axolotl_kd           rows of Axolotl's KD plugin: messages and a field of log-probabilities
    axolotl_kd_prepared  what that plugin makes of them: input_ids, target_token_ids, …
"""

from contextlib import suppress

from axolotl_distill.capture.layouts.axolotl_kd import AxolotlKD, AxolotlKDPrepared
from axolotl_distill.capture.layouts.base import Context, Example, Layout
from axolotl_distill.capture.layouts.chat import OpenAIChat, Trajectories
from axolotl_distill.capture.layouts.vllm import VLLMAnswers
from axolotl_distill.errors import ConfigError

LAYOUTS: dict[str, Layout] = {
    "trajectories": Trajectories(),
    "axolotl_kd_prepared": AxolotlKDPrepared(),
    "axolotl_kd": AxolotlKD(),
    "vllm": VLLMAnswers(),
    "openai": OpenAIChat(),
}


def find_layout(name: str | None, first: dict[str, object], path: str) -> tuple[str, Layout]:
    """The layout of that name, or the one that the first row has. Raises ConfigError."""
    known = ", ".join(LAYOUTS)
    if name is not None:
        if name not in LAYOUTS:
            raise ConfigError(f"--layout {name} is not known; known: {known}.")
        return name, LAYOUTS[name]
    for found, layout in LAYOUTS.items():
        # A row of something else may have anything where a layout has a mapping.
        with suppress(AttributeError, KeyError, IndexError, TypeError):
            if layout.fits(first):
                return found, layout
    raise ConfigError(
        f"The first row of {path} has the keys {', '.join(first)}, and no layout has "
        f"log-probabilities there. Name it with --layout: {known}."
    )


__all__ = ["LAYOUTS", "Context", "Example", "Layout", "find_layout"]
