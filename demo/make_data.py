"""A small real chat dataset from the docstrings of the interpreter's own standard library.

    python demo/make_data.py      .cache/pydoc-chat/{train,heldout}.jsonl

A user asks what a function does; the answer is its docstring. The text is Python's, under the PSF
licence, so it is made where it is needed and never committed; another release of Python gives
other rows. Held-out rows come from modules that training never sees.
"""

import importlib
import inspect
import json
import os
import random
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "pydoc-chat"
HELD_OUT = ("calendar", "fractions", "gzip", "pathlib", "sched", "shlex", "statistics", "zipfile")
SKIPPED = ("antigravity", "this", "idlelib", "lib2to3", "test", "turtle", "turtledemo", "tkinter")
WORDS = range(18, 160)
QUESTIONS = (
    "What does `{name}` do in Python?",
    "How do I use `{name}`?",
    "Explain Python's `{name}`.",
    "I found `{name}` in some code. What is it for?",
    "Can you describe `{name}` from the standard library?",
)
FOLLOW_UPS = (
    "Thanks. And `{name}`?",
    "What about `{name}`?",
    "And what is `{name}` for?",
)
TRAIN_ROWS, HELD_OUT_ROWS, SEED = 600, 60, 20


def documented(module_name: str) -> list[tuple[str, str]]:
    """(qualified name, docstring) of a module's public functions, classes and methods."""
    try:
        module = importlib.import_module(module_name)
    except Exception:
        return []
    found = []
    for name, member in sorted(vars(module).items()):
        if name.startswith("_") or getattr(member, "__module__", None) != module_name:
            continue
        found.append((f"{module_name}.{name}", member))
        if inspect.isclass(member):
            found += [
                (f"{module_name}.{name}.{attribute}", value)
                for attribute, value in sorted(vars(member).items())
                if not attribute.startswith("_") and callable(value)
            ]
    pairs = []
    for name, member in found:
        text = inspect.cleandoc(member.__doc__) if isinstance(member.__doc__, str) else ""
        if len(text.split()) in WORDS and text.isascii() and " at 0x" not in text:
            pairs.append((name, text))
    return pairs


def chats(pairs: list[tuple[str, str]], rng: random.Random) -> list[dict]:
    """One or two questions a chat, each answered by a docstring."""
    rng.shuffle(pairs)
    rows = []
    while pairs:
        messages = []
        for turn in range(2 if len(pairs) > 1 and rng.random() < 0.25 else 1):
            name, text = pairs.pop()
            question = rng.choice(FOLLOW_UPS if turn else QUESTIONS).format(name=name)
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": text},
            ]
        rows.append({"messages": messages})
    return rows


def main() -> None:
    sys.argv = sys.argv[:1]
    names = sorted(
        name for name in sys.stdlib_module_names if not name.startswith("_") and name not in SKIPPED
    )
    rng = random.Random(SEED)
    seen: set[str] = set()
    split: dict[str, list[tuple[str, str]]] = {"train": [], "heldout": []}
    for module in names:
        for name, text in documented(module):
            if text not in seen:
                seen.add(text)
                split["heldout" if module in HELD_OUT else "train"].append((name, text))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part, limit in (("train", TRAIN_ROWS), ("heldout", HELD_OUT_ROWS)):
        rows = chats(split[part], rng)[:limit]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        unfinished = FOLDER / f"{part}.{os.getpid()}.unfinished"
        unfinished.write_text(lines)
        unfinished.replace(FOLDER / f"{part}.jsonl")
        print(f"{part}: {len(rows)} rows")


if __name__ == "__main__":
    main()
