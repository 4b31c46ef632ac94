"""Under which names a teacher may be in the table: its own, its base model's, its licence's."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

_SAYS_NOTHING = re.compile(
    r"checkpoint-\d+|[0-9a-f]{40}|snapshots|models?|merged|final|latest|gguf|safetensors|hf|main",
    re.IGNORECASE,
)


def own_name(model: str) -> str:
    """The part of a hub name, a served name or a path that says which model it is.

    Folders such as `checkpoint-500` say nothing, and the folder above them is taken; a folder of
    the hub's cache (`models--org--name`) is read as `name`.
    """
    path = os.path.abspath(model) if Path(model).is_dir() else model
    for part in reversed(re.split(r"[/\\]", path)):
        if part.startswith("models--"):
            return part.split("--")[-1]
        if part and not _SAYS_NOTHING.fullmatch(part):
            return part
    return model


def hub_page(model: str) -> str:
    """The address of `org/name` on the Hugging Face hub; blank for anything that is no hub name."""
    is_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", model) and not Path(model).exists()
    return f"https://huggingface.co/{model}" if is_name else ""


def base_names(folder: Path) -> list[str]:
    """The models that a local model folder says it was made from; empty when it does not say."""
    named = [_config(folder).get("_name_or_path"), *_listed(_card(folder).get("base_model"))]
    return [own_name(name) for name in named if isinstance(name, str) and name]


def card_licences(folder: Path) -> list[str]:
    """The licence identifiers in the folder's model card, as the hub writes them (`llama3.1`)."""
    card = _card(folder)
    named = [card.get("license_name"), *_listed(card.get("license"))]
    return [name for name in named if isinstance(name, str)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _card(folder: Path) -> dict[str, Any]:
    """The YAML between the two `---` lines at the head of the folder's README.md."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        card = yaml.safe_load(front.group(1)) if front else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return card if isinstance(card, dict) else {}
