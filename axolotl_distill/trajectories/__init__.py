"""Trajectories: what a teacher wrote for a prompt, on disk. Plain JSON lines, no heavy imports.

A folder of `*.jsonl` files, each only ever appended to, one row a completion:

    id                 "<prompt_id>-<sample>"
    prompt_id          a hash of the prompt's messages (and its occurrence, where it is repeated)
    sample             0 … n-1
    messages           what the teacher was asked: [{"role", "content"}, …]
    content            what it wrote, to the letter
    reasoning_content  its thinking where the server gave it apart, else null
    finish_reason      "stop", "length", …
    usage              {"prompt_tokens", "completion_tokens"}
    logprobs           the server's `logprobs.content` list where asked for, else null
    teacher            the model's name
    meta               the other columns of the prompt's row: reference answer, tests, source, …
"""

from axolotl_distill.trajectories.journal import Journal, read_trajectories
from axolotl_distill.trajectories.thinking import CLOSE, OPEN, join_thinking, split_thinking
from axolotl_distill.unplugged import needs_plugin

load = needs_plugin("axolotl_distill.trajectories")

__all__ = [
    "CLOSE",
    "OPEN",
    "Journal",
    "join_thinking",
    "load",
    "read_trajectories",
    "split_thinking",
]
