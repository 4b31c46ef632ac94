"""Reads a YAML file that a person wrote, and says where it is wrong. Imports nothing heavy.

What YAML 1.1 and 1.2 read differently is read as 1.2 has it: `no`, `on` and dates are text, and
1e-4 is a number; a key that stands twice in a mapping is refused and not overridden.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from axolotl_distill.errors import ConfigError
from axolotl_distill.show import foreign

LARGEST_FILE = 16 * 2**20
SAVE = "Save it as UTF-8."
# By their first bytes; utf-32's begins like utf-16's.
OTHER_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
RESOLVED = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that is in a file.

    Raises ConfigError, with the line, for what is no UTF-8, no YAML, no mapping, and for a key
    that stands twice; OSError where the file cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name the YAML file in it.") from None
    except ValueError:
        raise ConfigError(f"{foreign(path)}: no such file; a path has no NUL character.") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError(f"{path} has more than 16 MiB; this is no config. Check the path.")
    text = _decoded(path, raw)
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_fault(error, text)}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply to be read.") from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        # PyYAML builds numbers and tagged values with whatever Python raises.
        raise ConfigError(f"{path} holds a value that YAML cannot read: {foreign(error)}") from None
    if values is None:
        raise ConfigError(f"{path} is empty.")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds a {type(values).__name__}, and must be a mapping: lines of `key: value`."
        )
    return values


def _decoded(path: Path, raw: bytes) -> str:
    for mark, name in OTHER_ENCODINGS.items():
        if raw.startswith(mark):
            raise ConfigError(f"{path} is {name}, not UTF-8. {SAVE}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line} is not UTF-8: the byte 0x{raw[error.start]:02x} begins no "
            f"character. {SAVE}"
        ) from None


def _fault(error: yaml.YAMLError, text: str) -> str:
    """ ", line 3 is not YAML: what is wrong", and the line itself."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        code = error.character if isinstance(error.character, int) else ord(error.character)
        return f", line {line} is not YAML: it holds the character U+{code:04X}. Remove it."
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = foreign(getattr(error, "problem", None) or error)
    context = foreign(getattr(error, "context", None) or "")
    if mark is None:
        return f" is not YAML: {problem}"
    if isinstance(error, _TwiceError):
        return f", line {mark.line + 1}: {problem}"
    hint = ""
    if "\\t" in problem:
        hint = " YAML indents with spaces, not with tabs."
    lines = text.splitlines()
    shown = foreign(lines[mark.line], 120) if mark.line < len(lines) else "(the end of the file)"
    told = f"{context}: {problem}" if context else problem
    return (
        f", line {mark.line + 1}, column {mark.column + 1} is not YAML: {told}.{hint}\n    {shown}"
    )


class _TwiceError(yaml.constructor.ConstructorError):
    pass


class _Loader(yaml.SafeLoader):
    """PyYAML's safe one, with the scalars of YAML 1.2 and no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as PyYAML has it)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Here the keys are those that were written; what is merged in may be overridden.
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            name = (key.tag, key.value)
            line = key.start_mark.line + 1
            if name in lines and not getattr(node, "was_checked", False):
                raise _TwiceError(
                    None,
                    None,
                    f"the key `{key.value}` is there already, in line {lines[name]}. Keep one of "
                    "them.",
                    key.start_mark,
                )
            lines[name] = line
        node.was_checked = True  # type: ignore[attr-defined]  # ours: it may be merged in twice
        super().flatten_mapping(node)


for _name, (_pattern, _first) in RESOLVED.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
    )
