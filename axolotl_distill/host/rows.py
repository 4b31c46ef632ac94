"""Rows that cannot be tokenised, named before anything is: dataset, number, id, and what is wrong.

Axolotl tokenises a thousand rows at a time, and says of one that fails neither which it is nor, of
a chat without a text, that it was one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axolotl.prompt_strategies import load as load_strategy
from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter
from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config
from axolotl.utils.dict import DictDefault

from axolotl_distill.errors import CaptureError, DistillError

# What chat templates know that need not name it to do so.
ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "human", "gpt"}
# What stands for a text in a turn that has none.
INSTEAD = ("tool_calls", "reasoning_content", "thinking", "reasoning")
IDS = ("id", "prompt_id", "uuid")
JSON_FILES = (".json", ".jsonl")
LOCAL = (*JSON_FILES, ".parquet", ".csv", ".txt", ".arrow")

Row = dict[str, Any]


def check_rows(cfg: DictDefault, entries: list[DictDefault], tokenizer: Any) -> None:
    """Raises CaptureError for a dataset that cannot be loaded or has no rows, and for the first
    chat that is none: no messages, a turn without role or content, a role that nobody knows."""
    for entry in datasets_with_name_generator(entries):
        rows = _load(cfg, entry)
        prompter = getattr(_strategy(cfg, entry, tokenizer), "prompter", None)
        if not isinstance(prompter, ChatTemplatePrompter):
            continue
        field = prompter.field_messages
        if field not in rows.column_names:
            raise CaptureError(
                f"{_name(entry)} has no `{field}`, it has {', '.join(rows.column_names)}. Name the "
                "field that holds the messages: `field_messages`."
            )
        for index, row in enumerate(rows):
            if (wrong := _wrong_chat(row[field], prompter)) is not None:
                raise CaptureError(f"{_where(entry, index, row)}: {wrong}")


def find_fault(
    cfg: DictDefault, entries: list[DictDefault], tokenizer: Any, error: Exception
) -> CaptureError:
    """The row at which tokenising `entries` raised `error`, as an error that names it."""
    for entry in datasets_with_name_generator(entries):
        rows = _load(cfg, entry)
        strategy = _strategy(cfg, entry, tokenizer)
        for index, row in enumerate(rows if hasattr(strategy, "tokenize_prompt") else ()):
            try:
                batched = {name: [value] for name, value in row.items()}
                strategy.tokenize_prompt(batched if strategy.supports_batched else row)
            except DistillError:
                raise
            except Exception as fault:
                return CaptureError(
                    f"{_where(entry, index, row)} cannot be tokenised as `type: {entry.type}`: "
                    f"{_said(fault)}. Mend or delete the row, or choose another `chat_template` or "
                    "`type`."
                )
    return CaptureError(
        f"{', '.join(map(_name, entries))} cannot be tokenised: {_said(error)}. No row "
        "is to blame. Where another run ends like this, look at `distill.capture.datasets`, "
        "`sequence_len` and `excess_length_strategy`."
    )


def _load(cfg: DictDefault, entry: DictDefault) -> Any:
    path = str(entry.path)
    if not Path(path).exists() and (path.startswith((".", "/", "~")) or path.endswith(LOCAL)):
        raise CaptureError(
            f"{path}: no such file or folder (`distill.capture.datasets[].path`); relative paths "
            f"begin at {Path.cwd()}."
        )
    try:
        found = load_dataset_with_config(entry, cfg.hf_use_auth_token)
        if hasattr(found, "keys"):
            found = found[entry.split if entry.split in found else "train"]
    except KeyError as error:
        raise CaptureError(f"{_name(entry)} has no split {error}; name one: `split`.") from error
    except Exception as error:
        raise CaptureError(
            f"{_name(entry)} cannot be loaded: {_torn_line(path) or _said(error)}"
        ) from error
    if not len(found):
        raise CaptureError(f"{_name(entry)} has no rows, so there is nothing to capture.")
    return found


def _strategy(cfg: DictDefault, entry: DictDefault, tokenizer: Any) -> Any:
    kind = entry.type
    if not isinstance(kind, str):
        return None
    try:
        return load_strategy(kind, tokenizer, cfg, entry)
    except DistillError:
        raise
    except Exception as error:
        raise CaptureError(
            f"{_name(entry)}: `type: {kind}` cannot be used: {_said(error)}. Look at the options "
            "of this entry of `distill.capture.datasets`."
        ) from error


def _wrong_chat(messages: Any, prompter: ChatTemplatePrompter) -> str | None:
    """What is wrong with a chat, and what to do."""
    field, keys = prompter.field_messages, prompter.message_property_mappings
    if not isinstance(messages, list) or not messages:
        seen = "is empty" if messages == [] else f"is {_short(messages)}"
        return f"`{field}` {seen}, and a list of turns is expected. Mend or delete the row."
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn, dict):
            return f"turn {number} is {_short(turn)}, not a mapping. Mend or delete the row."
        role, content = (turn.get(keys.get(name, name)) for name in ("role", "content"))
        if not isinstance(role, str) or not role:
            return (
                f"turn {number} has no `{keys.get('role', 'role')}`, it has "
                f"{', '.join(name for name, value in turn.items() if value is not None)}. Mend or "
                "delete the row, or name its keys: `message_property_mappings`."
            )
        if role not in ROLES and role not in prompter.roles and not _names(prompter, role):
            return (
                f"turn {number} has the role `{role}`, which neither the chat template nor Axolotl "
                f"knows. Correct it, or say what it is: `roles: {{assistant: [{role}]}}`."
            )
        if (wrong := _wrong_content(turn, content)) is not None:
            name = keys.get("content", "content")
            return f"turn {number} ({role}): `{name}` {wrong}. Mend or delete the row."
    return None


def _wrong_content(turn: Row, content: Any) -> str | None:
    if content is None:
        return None if any(turn.get(name) for name in INSTEAD) else "is missing"
    if isinstance(content, str):
        return None
    if not isinstance(content, list):
        return f"is {_short(content)}, and a text is expected"
    for part in content:
        # Axolotl joins what has a text, and leaves out what has none: images, files.
        texts = (part.get(name) for name in ("text", "content", "value")) if _is_map(part) else ()
        if not any(isinstance(text, str) for text in texts):
            return f"has a part that is no text: {_short(part)}"
    return None


def _is_map(value: Any) -> bool:
    return isinstance(value, dict)


def _names(prompter: ChatTemplatePrompter, role: str) -> bool:
    template = prompter.chat_template or ""
    return f"'{role}'" in template or f'"{role}"' in template


def _name(entry: DictDefault) -> str:
    return str(entry.path)


def _where(entry: DictDefault, index: int, row: Row) -> str:
    named = next((f" ({name} {row[name]})" for name in IDS if row.get(name) is not None), "")
    return f"{_name(entry)}, row {index + 1}{named}"


def _torn_line(path: str) -> str | None:
    """Of a local JSON file: which line is no JSON object, or whose fields are another type's."""
    if not path.endswith(JSON_FILES) or not Path(path).is_file():
        return None
    first: dict[str, tuple[int, type]] = {}
    for number, row in _lines(Path(path)):
        if isinstance(row, Exception):
            return f"row {number} is no JSON: {row}. Mend or delete it."
        if not isinstance(row, dict):
            return f"row {number} is {_short(row)}, not an object. Mend or delete it."
        for name, value in row.items():
            if value is None:
                continue
            before, kind = first.setdefault(name, (number, type(value)))
            if type(value) is not kind:
                return (
                    f"`{name}` is {_short(value)} in row {number}, and of type {kind.__name__} in "
                    f"row {before}. Give both the same type."
                )
    return "it has no rows, so there is nothing to capture." if not first else None


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.lstrip().startswith("["):
        # A JSON file that is one list.
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            yield 1, error
        return
    number = 0
    for line in text.split("\n"):
        if line.strip():
            number += 1
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, error
                return


def _said(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"
