"""Trajectories: what a teacher wrote for a prompt, on disk. Plain JSON lines, no heavy imports.

A folder of `*.jsonl` files, each only ever appended to, one row a completion:

    id                 "<prompt_id>-<sample>"
    prompt_id          a hash of the prompt's messages and tools (and its occurrence, where it is
                       repeated)
    sample             0 … n-1
    messages           what the teacher was asked: [{"role", "content", …}, …] (messages.py)
    tools              the tools it was offered, else null
    content            its answer, without the thinking
    reasoning_content  its thinking, else null
    thinking_form      how the thinking came, and that it was split off (thinking.py): "apart" (in
                       a field of its own), "tags", "closing tag" (the prompt had opened it),
                       "unclosed" (there is no answer), "none"
    message            all else that is in the server's message, to the letter: tool_calls, refusal,
                       annotations, …
    finish_reason      "stop", "length", … (finish.py)
    usage              {"prompt_tokens", "completion_tokens"}
    logprobs           the server's `logprobs.content` list where asked for, else null
    teacher            the model's name
    meta               the other columns of the prompt's row: reference answer, tests, source, …
    seal               a check sum of all of this

Rows that somebody else wrote need id, prompt_id, messages and content only; their thinking may
stand in the content.
"""

from axolotl_distill.trajectories.finish import ending, is_unfinished
from axolotl_distill.trajectories.journal import Damage, Journal, read_trajectories
from axolotl_distill.trajectories.plain import sealed
from axolotl_distill.trajectories.row import Row, Trajectory, Usage
from axolotl_distill.trajectories.thinking import (
    CLOSE,
    OPEN,
    join_thinking,
    parts_of,
    split,
    split_thinking,
)
from axolotl_distill.unplugged import needs_plugin

load = needs_plugin("axolotl_distill.trajectories")

__all__ = [
    "CLOSE",
    "OPEN",
    "Damage",
    "Journal",
    "Row",
    "Trajectory",
    "Usage",
    "ending",
    "is_unfinished",
    "join_thinking",
    "load",
    "parts_of",
    "read_trajectories",
    "sealed",
    "split",
    "split_thinking",
]
