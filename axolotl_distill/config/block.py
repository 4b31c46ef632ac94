"""What every YAML block of ours is: a pydantic model that takes nothing for what it is not, and,
given a wrong key, names the right one.

Imports nothing heavy: a block is checked before torch, transformers or a model are touched.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from axolotl_distill.errors import ConfigError
from axolotl_distill.show import foreign

B = TypeVar("B", bound="Block")
LARGEST = 2**63 - 1
# YAML 1.1, which Axolotl's reader speaks, takes numbers without a dot such as 1e-4 for text.
EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
# What pydantic puts into a fault's place for a branch of a union.
BRANCHES = {
    *("str", "int", "float", "bool", "list[str]", "list[float]", "dict[str,any]"),
    *("dict[str,union[int,str]]", "(a word)", "(a block)", "(choices)"),
}
WANTED = {
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text (in quotes where YAML would read it as something else)",
    "list_type": "must be a list, as in [a, b]",
    "dict_type": "must be a mapping, as in {key: value}",
    "model_type": "must be a mapping, as in {key: value}",
    "model_attributes_type": "must be a mapping, as in {key: value}",
}


@dataclass(frozen=True, init=False)
class ReadBy:
    """Stands on a key that only some combinations read: `Annotated[float, ReadBy("divergence",
    "jsd")]`. Where it is there and nothing reads it, the block is refused, whatever its value.

    key     another key, of the same block or of the one around it; `teacher.server` goes deeper
    values  with one of these it is read; None stands for a key that is not set
    unless  with one of these it is not
    """

    key: str
    values: tuple[Any, ...]
    unless: tuple[Any, ...]

    def __init__(self, key: str, *values: Any, unless: tuple[Any, ...] = ()):
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "unless", unless)

    def fault(self, name: str, seen: Any, other: Any) -> str | None:
        """Why the key `name`, set to `seen`, is not read where `key` is `other`."""
        if other not in self.unless and (not self.values or other in self.values):
            return None
        at = f"{name}: {_shown(seen)}" if isinstance(seen, str | int | float) else name
        now = "is not set" if other is None else f"is {_shown(other)}"
        if self.unless and other is None:
            return f"`{at}` is not read without `{self.key}`. Remove it."
        if self.unless:
            return f"`{at}` is not read with `{self.key}: {_shown(other)}`. Remove it."
        if self.values == (None,):
            return f"`{at}` is read without `{self.key}` only, and `{self.key}` {now}. Remove it."
        readers = " and ".join(f"`{self.key}: {_shown(value)}`" for value in self.values)
        return (
            f"`{at}` is read by {readers} only, and `{self.key}` {now}. Remove it, or change "
            f"`{self.key}`."
        )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel | dict):
        return "set"
    return foreign(f"{value:g}" if isinstance(value, float) else value, 80)


class Block(BaseModel):
    """A YAML mapping that refuses unknown keys and names the nearest right one, and refuses keys
    that nothing reads (`ReadBy`).

    Strict: no text for a number or a boolean, no fraction for an integer, no infinity, no NaN.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    MEANT: ClassVar[dict[str, str]] = {}
    """What a key that others use here is called by us."""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = [cls.MEANT[key]] if key in cls.MEANT else None
                near = near or get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "remove it."
                known = ", ".join(f"`{name}`" for name in cls.model_fields)
                raise ValueError(f"unknown key `{foreign(key)}`; {hint} Known keys here: {known}")
        return {
            key: _with_exponent(value) if _is_number(cls.model_fields[key].annotation) else value
            for key, value in values.items()
        }

    @model_validator(mode="after")
    def _all_is_read(self) -> "Block":
        for fault in _unread(self):
            raise ValueError(fault)
        return self


def _unread(block: Block, around: Block | None = None, at: str = "") -> Iterator[str]:
    """What is wrong with the keys of `block` whose readers are told by a key of `around` (default:
    of itself), then with those of the blocks in it that `block` tells of."""
    teller = around or block
    for name in block.model_fields_set:
        value = getattr(block, name)
        for mark in type(block).model_fields[name].metadata:
            if not isinstance(mark, ReadBy):
                continue
            head = mark.key.partition(".")[0]
            is_own = head in type(block).model_fields
            if head in type(teller).model_fields and is_own is (around is None):
                fault = mark.fault(f"{at}{name}", value, _looked_up(teller, mark.key))
                if fault is not None:
                    yield fault
        if around is None and isinstance(value, Block):
            yield from _unread(value, block, f"{name}.")


def _looked_up(block: Any, key: str) -> Any:
    for part in key.split("."):
        block = getattr(block, part, None)
    return block


def _is_number(annotation: Any) -> bool:
    parts = get_args(annotation) or (annotation,)
    return float in parts and str not in parts


def _with_exponent(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_exponent(inner) for inner in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def expanded(path: str) -> str:
    """A path with `~` and `$VARIABLE` as a shell reads them.

    Raises ValueError for one that is empty, names a variable that is not set, or holds a NUL.
    """
    if not path.strip() or "\0" in path:
        raise ValueError("must be a path, and is empty or holds a NUL character")
    for found in VARIABLE.finditer(path):
        name = found[1] or found[2]
        if name not in os.environ:
            raise ValueError(
                f"the environment variable `{name}` is not set; set it, or write the path out"
            )
    made = os.path.expandvars(path)
    if made.startswith("~"):
        try:
            made = str(Path(made).expanduser())
        except RuntimeError:
            raise ValueError(f"there is no home folder for {made.split('/')[0]!r}") from None
    return made


PathText = Annotated[str, AfterValidator(expanded)]
"""A file, a folder, or a hub name where one is allowed; `~` and variables are expanded."""


def parse_block(model: type[B], values: Any, *prefix: str) -> B:
    """`values` as the block `model`; `prefix` are the keys that lead to it in the file.

    Raises ConfigError with one line a fault: the full key, what was seen and what was expected.
    """
    try:
        return model.model_validate(_as_json(values, prefix))
    except ValidationError as error:
        raise ConfigError("\n".join(_lines(error, prefix))) from None
    except RecursionError:
        key = f"`{'.'.join(prefix)}`" if prefix else "This file"
        raise ConfigError(f"{key} is nested too deeply, or holds itself by an anchor.") from None


def _as_json(value: Any, at: tuple[str, ...]) -> Any:
    """`value` as JSON would give it back: keys are text, and nothing is there that JSON has not."""
    key = ".".join(at)
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise ConfigError(
                    f"`{key}` has the key {foreign(repr(name))}, and a key must be text. Put it in "
                    "quotes."
                )
        return {str(name): _as_json(inner, (*at, str(name))) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inner, (*at, str(index))) for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"`{key}` must be a finite number (got {value})")
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"`{key}` must be a number of at most 64 bits")
    if isinstance(value, bytes | set) or hasattr(value, "isoformat"):
        raise ConfigError(
            f"`{key}` is a {type(value).__name__} to YAML (got {foreign(repr(value), 80)}). Put it "
            "in quotes if text is meant."
        )
    return value


def _lines(error: ValidationError, prefix: tuple[str, ...]) -> list[str]:
    """One line a key, in the order of the faults."""
    faults: dict[str, list[str]] = {}
    shown: dict[str, str] = {}
    for fault in error.errors():
        parts = [str(part) for part in fault["loc"] if part not in BRANCHES]
        key = ".".join([*prefix, *parts])
        message = _message(fault)
        if message not in faults.setdefault(key, []):
            faults[key].append(message)
        seen = fault["input"]
        is_secret = "api_key" in key
        if fault["type"] != "missing" and not isinstance(seen, dict) and not is_secret:
            shown[key] = f" (got {foreign(repr(seen), 200)})"
    return [
        f"`{foreign(key)}`: {' or '.join(said)}{shown.get(key, '')}"
        if key
        else f"{' or '.join(said)}{shown.get(key, '')}"
        for key, said in faults.items()
    ]


def _message(fault: Any) -> str:
    kind, seen = fault["type"], fault["input"]
    if kind == "missing":
        return "is required and is not there"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", fault["ctx"]["expected"])
        near = get_close_matches(seen, allowed, n=1) if isinstance(seen, str) else []
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"must be one of {', '.join(allowed)}{hint}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return fault["msg"].replace("Input should be", "must be")
    return WANTED.get(kind) or fault["msg"].removeprefix("Value error, ")
