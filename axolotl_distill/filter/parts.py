"""What of a row steps compare, count and show."""

import json
from hashlib import blake2b

from axolotl_distill.trajectories import parts_of
from axolotl_distill.trajectories.messages import spoken
from axolotl_distill.trajectories.row import Trajectory


def part(row: Trajectory, of: str) -> str:
    """The row's "thinking", "answer", "prompt" (system messages aside), or "all" it wrote."""
    if of == "prompt":
        return "\n".join(spoken(m) for m in row["messages"] if m["role"] != "system")
    thinking, answer, _ = parts_of(row)
    if of == "thinking":
        return thinking or ""
    return answer.strip() if of == "answer" else "\n".join(filter(None, (thinking, answer.strip())))


def calls_text(row: Trajectory) -> str:
    """The calls of tools in the row's answer, as text to compare or to grade; "" without any."""
    return spoken({**(row.get("message") or {}), "content": ""})


def tools_text(row: Trajectory) -> str:
    """The tools that the teacher was offered, as JSON; "" without any."""
    return json.dumps(row["tools"], ensure_ascii=False, sort_keys=True) if row.get("tools") else ""


def plain(text: str) -> str:
    """Without differences in white space and case."""
    return " ".join(text.split()).casefold()


def text_hash(text: str, salt: str = "") -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(blake2b(f"{salt}\0{text}".encode(), digest_size=8).digest())
