"""Folders of trajectories, as `axolotl distill generate` leaves them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from axolotl_distill.trajectories import Journal


def trajectory(prompt: str | int = 0, sample: int = 0, **fields: Any) -> dict[str, Any]:
    """A whole row; `fields` replace its own."""
    row = {
        "id": f"p{prompt}-{sample}",
        "prompt_id": f"p{prompt}",
        "sample": sample,
        "messages": [{"role": "user", "content": f"What is {prompt} plus {sample}?"}],
        "content": f"<think>\nI add {sample} to {prompt}.\n</think>\n\nIt is \\boxed{{{sample}}}.",
        "reasoning_content": None,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 9, "completion_tokens": 20},
        "logprobs": None,
        "teacher": "teacher",
        "meta": {},
    }
    row["messages"][0]["content"] = f"What is {prompt} plus something?"
    return {**row, **fields}


def write_trajectories(
    folder: Path, rows: Iterable[dict[str, Any]], parts: int = 1, **generation: Any
) -> Path:
    """The rows in `parts` journals, and a generation.json with what is given beside them."""
    rows = list(rows)
    for part in range(parts):
        with Journal(folder / f"part-{part:05d}.jsonl") as journal:
            journal.append(rows[part::parts])
    if generation:
        (folder / "generation.json").write_text(json.dumps(generation))
    return folder
