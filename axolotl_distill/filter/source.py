"""Rows of text out of files, as trajectories: what `axolotl distill generate` wrote, and any rows
of finished conversations."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from axolotl_distill.disk.rows import LINES, is_saved_dataset, json_rows, parquet_rows, saved_rows
from axolotl_distill.errors import TrajectoryError, UnreadableError
from axolotl_distill.show import foreign
from axolotl_distill.trajectories import Damage, read_trajectories
from axolotl_distill.trajectories.messages import text_of
from axolotl_distill.trajectories.plain import plain, without_nulls
from axolotl_distill.trajectories.row import Row

KNOWN = (*LINES, ".parquet")
# Columns of a conversation, of ShareGPT's, and of one question with its answer.
CHATS = ("messages", "conversations", "conversation")
PAIRS = (
    ("instruction", ("output", "response")),
    ("prompt", ("completion", "response", "answer")),
    ("question", ("response", "completion", "answer")),
)
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def read_source(path: str | Path, damaged: Callable[[Damage], None]) -> Iterator[tuple[str, Row]]:
    """(where it stands, row) of every row in a file or a folder, in order.

    A folder of trajectories is read as `read_trajectories` does, which tells `damaged` of lines
    that are none. Any other .jsonl (.gz, .zst) or .parquet file, folder of them, or saved Hugging
    Face dataset holds conversations; see `as_trajectory`.

    Raises TrajectoryError for a path with no such file, and for a file that cannot be read.
    """
    for file, number, row in _rows(Path(path), damaged):
        yield f"{file.name}, row {number}", row


def as_trajectory(row: Row, occurrences: Counter[str]) -> Row:
    """The row where `generate` wrote it, else its conversation as one: `messages`,
    `conversations` (ShareGPT's too), or a question and an answer in columns of their own. The last
    answer is what is filtered, and the other columns are the row's `meta`.

    occurrences  how often each question came so far; it counts on

    Raises ValueError for a row that holds neither.
    """
    return row if "content" in row else _conversation(row, occurrences)


def _rows(path: Path, damaged: Callable[[Damage], None]) -> Iterator[tuple[Path, int, Row]]:
    try:
        if is_saved_dataset(path):
            for number, row in enumerate(saved_rows(path), 1):
                yield path, number, row
            return
        for file in _files(path):
            lines = file.suffix == ".jsonl"
            rows = enumerate(read_trajectories(file, damaged), 1) if lines else _table(file)
            for number, row in rows:
                yield file, number, row
    except UnreadableError as error:
        raise TrajectoryError(str(error)) from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(KNOWN):
            raise TrajectoryError(
                f"{path} is not read by its name; known are {', '.join(KNOWN)}, and folders of "
                "them. Convert it, or rename it."
            )
        return [path]
    # A dataset of ours or of the hub has its rows under data/, and ours what it dropped beside.
    for folder in (path, path / "data"):
        found = sorted(file for file in folder.glob("*") if file.name.endswith(KNOWN))
        if found:
            return found
    raise TrajectoryError(
        f"{path} holds no trajectories: there is no *{', *'.join(KNOWN)} file. Check the path, or "
        "make them with `axolotl distill generate RECIPE.yml`."
    )


def _table(file: Path) -> Iterator[tuple[int, Row]]:
    if file.suffix == ".parquet":
        yield from enumerate(parquet_rows(file), 1)
        return
    for line in json_rows(file):
        if line.row is None:
            raise TrajectoryError(
                f"{file}, line {line.number} is not a JSON object: {foreign(line.fault)}. Mend or "
                "delete it."
            )
        yield line.number, line.row


def _conversation(row: Row, occurrences: Counter[str]) -> Row:
    """A row that no `generate` wrote. Its ids come from its text, and stay when rows are added."""
    key = next((name for name in CHATS if row.get(name) is not None), None)
    if key is not None:
        messages, used = _messages(row[key], key), [key]
    else:
        messages, used = _pair(row)
    answer = messages.pop()
    asked = json.dumps(messages, ensure_ascii=False, sort_keys=True)
    prompt_id = hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()[:16]
    sample = occurrences[prompt_id]
    occurrences[prompt_id] += 1
    thinking = answer.pop("reasoning_content", None)
    if row.get("tools"):
        used.append("tools")
    return {
        "id": f"{prompt_id}-{sample}",
        "prompt_id": prompt_id,
        "sample": sample,
        "messages": messages,
        "tools": row.get("tools") or None,
        "content": answer.pop("content"),
        "reasoning_content": thinking if isinstance(thinking, str) else None,
        "message": answer,
        "finish_reason": row.get("finish_reason"),
        "meta": {name: plain(value, name) for name, value in row.items() if name not in used},
    }


def _messages(value: Any, key: str) -> list[Row]:
    made = []
    for message in value if isinstance(value, list) else [value]:
        found = message if isinstance(message, dict) else {}
        role, content = found.get("role", found.get("from")), found.get("content")
        if content is None:
            content = found.get("value", "" if found.get("tool_calls") else None)
        if isinstance(content, list):
            content = text_of(content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f"`{key}` must be a list of messages {{role, content}} (or {{from, value}}), both "
                f"text, and one is {foreign(message, 200)}"
            )
        rest = {
            name: without_nulls(inner)
            for name, inner in found.items()
            if name not in ("role", "from", "content", "value") and inner is not None
        }
        made.append({"role": ROLES.get(role, role), "content": content, **rest})
    if len(made) < 2 or made[-1]["role"] != "assistant":
        last = made[-1]["role"] if made else "nobody"
        raise ValueError(
            f"`{key}` must be a question and end with an answer of the assistant, and has "
            f"{len(made)} messages, the last by {foreign(last, 40)}"
        )
    return made


def _pair(row: Row) -> tuple[list[Row], list[str]]:
    for asked, answers in PAIRS:
        answer = next((name for name in answers if isinstance(row.get(name), str)), None)
        if answer is None or not isinstance(row.get(asked), str):
            continue
        used, text = [asked, answer], row[asked]
        if asked == "instruction" and isinstance(row.get("input"), str):
            # Alpaca's layout: what the instruction is about is in a column of its own.
            used.append("input")
            text = f"{text}\n\n{row['input']}" if row["input"] else text
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": row[answer]},
        ]
        if isinstance(row.get("system"), str):
            used.append("system")
            if row["system"]:
                messages.insert(0, {"role": "system", "content": row["system"]})
        return messages, used
    raise ValueError(
        f"it holds no conversation: it has {foreign(', '.join(map(str, row)) or 'nothing')}. "
        f"Known are {', '.join(f'`{name}`' for name in CHATS)}, `instruction` with `output`, "
        "`prompt` with `completion`, `question` with `answer`, and what `axolotl distill generate` "
        "writes."
    )
